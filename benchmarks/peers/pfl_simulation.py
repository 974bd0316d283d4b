"""pfl-research's own simulation: its SimulatedBackend and FederatedAveraging.

One process, or several under ``torchrun``, which share out the cohort. The first round, which is
not counted, is the only one in which pfl evaluates anything.
"""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.work import Work, build_model, data_of, print_rounds, read_argument

NEVER_AGAIN = 1_000_000


class Net(nn.Module):
    """The model, with the two methods that pfl asks for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layers = build_model(name)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the batch's mean loss."""
        return functional.cross_entropy(self.layers(inputs), targets)

    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Weighted]:
        """Return something to add up in the first round."""
        return {"examples": Weighted(len(inputs), len(targets))}


class Clock(TrainingProcessCallback):  # type: ignore[misc]  # pfl has no types here
    """Notes when rounds end."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Metrics]:
        """Note the end of one."""
        self.times.append(time.perf_counter())
        return False, Metrics()


def run(work: Work) -> list[float]:
    """Return the seconds of each round."""
    torch.set_num_threads(work.num_threads)
    inputs, targets = data_of(work)
    users = {
        str(client): PyTorchTensorDataset((inputs[client], targets[client]), user_id=str(client))
        for client in range(work.num_clients)
    }
    data = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    net, clock = Net(work.model).to(work.device), Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.num_rounds,
            evaluation_frequency=NEVER_AGAIN,
            train_cohort_size=work.cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=work.learning_rate,
            local_batch_size=work.batch_size,
        ),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    return [end - begin for begin, end in pairwise(clock.times)]


if __name__ == "__main__":
    print_rounds(run(read_argument()))
