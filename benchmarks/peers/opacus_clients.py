"""DP-SGD of every client by Opacus' PrivacyEngine, made private anew for each as its example does.

``Work.mode`` is its ``grad_sample_mode``. Kept to Opacus' advantage: the wrapped model stays from
client to client, batches are taken from its Poisson sampler by index and not by its slower data
loader, empty ones are skipped, and no ε is computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.grad_sample import get_gsm_class
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.bare_loop import load
from benchmarks.peers.rounds import run_rounds
from benchmarks.peers.work import Work, build_model, data_of, print_rounds, read_argument

NOISE_MULTIPLIER = 1.0
CLIP_NORM = 1.0


def train_share(work: Work, clients: Sequence[int], weights: list[Tensor]) -> list[Tensor]:
    """Return the sum of the trained weights over some clients."""
    warnings.filterwarnings("ignore")  # of hooks and of secure_mode, a line a client
    inputs, targets = data_of(work)
    model = _wrapped(work.model, work.mode)
    parameters = list(model.parameters())
    sums = [torch.zeros_like(weight) for weight in weights]
    for client in clients:
        load(parameters, weights)
        train_client(model, inputs[client], targets[client], work)
        for total, parameter in zip(sums, parameters, strict=True):
            total += parameter.detach()
    return sums


def train_client(model: nn.Module, inputs: Tensor, targets: Tensor, work: Work) -> None:
    """Train one epoch of Poisson batches, in place."""
    private: Any = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=work.learning_rate),
        data_loader=DataLoader(TensorDataset(inputs, targets), batch_size=work.batch_size),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        grad_sample_mode=work.mode,
    )
    module, optimizer, loader = private[0], private[1], private[-1]
    criterion = private[2] if len(private) > 3 else nn.CrossEntropyLoss()
    for index in loader.batch_sampler:
        if len(index) == 0:
            continue
        optimizer.zero_grad()
        criterion(module(inputs[index]), targets[index]).backward()
        optimizer.step()


@cache
def _wrapped(name: str, mode: str) -> nn.Module:
    wrap: Any = get_gsm_class(mode)
    options = {"max_grad_norm": CLIP_NORM} if mode == "ghost" else {}
    module: nn.Module = wrap(build_model(name), **options)
    return module


def main() -> None:
    """Run what the command line names."""
    print_rounds(run_rounds(read_argument(), train_share))


if __name__ == "__main__":
    # By its name, so that the processes it starts find the function there.
    from benchmarks.peers import opacus_clients

    opacus_clients.main()
