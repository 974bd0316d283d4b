"""Flower's own simulation on Ray: its message API, its FedAvg, a client app of plain torch.

Model and data stay in each actor from client to client. A round is from one configuration of
training to the next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.nn import functional

from benchmarks.peers.work import Work, build_model, data_of, print_rounds, read_argument

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client for one epoch."""
    work = Work.from_json(str(message.content.config_records["config"]["work"]))
    model = _model(work.model, work.num_threads)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=work.learning_rate)
    client = int(context.node_config["partition-id"])
    inputs, targets = (torch.split(tensor[client], work.batch_size) for tensor in data_of(work))
    for batch_inputs, batch_targets in zip(inputs, targets, strict=True):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch_inputs), batch_targets)
        torch.autograd.backward(loss)
        optimizer.step()
    metrics = MetricRecord({"num-examples": work.num_examples})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@cache
def _model(name: str, num_threads: int) -> nn.Module:
    torch.set_num_threads(num_threads)
    return build_model(name)


class TimedFedAvg(FedAvg):
    """FedAvg over every client, without evaluation, that notes when its rounds begin."""

    def __init__(self, work: Work) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            min_train_nodes=work.num_clients,
            min_available_nodes=work.num_clients,
        )
        self.work = work
        self.times: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every client."""
        self.times.append(time.perf_counter())
        config["work"] = self.work.to_json()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the mean, if every client answered."""
        replies = list(replies)
        num_good = sum(not reply.has_error() for reply in replies)
        if num_good < self.work.num_clients:
            raise RuntimeError(f"{num_good} of {self.work.num_clients} clients answered")
        return super().aggregate_train(server_round, replies)


def run(work: Work) -> list[float]:
    """Return the seconds of each round.

    Args:
        work: ``num_processes`` is how many actors the cores are shared out to.
    """
    strategy = TimedFedAvg(work)
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        arrays = ArrayRecord(build_model(work.model).state_dict())
        strategy.start(grid, arrays, num_rounds=work.num_rounds)
        strategy.times.append(time.perf_counter())

    num_cpus = (os.cpu_count() or 1) / work.num_processes
    resources: dict[str, Any] = {
        "num_cpus": int(num_cpus) if num_cpus >= 1 else num_cpus,
        "num_gpus": 0.0,
    }
    run_simulation(
        server_app,
        client_app,
        work.num_clients,
        backend_config={"client_resources": resources, "init_args": {"log_to_driver": False}},
    )
    return [end - begin for begin, end in pairwise(strategy.times)]


def main() -> None:
    """Run what the command line names."""
    print_rounds(run(read_argument()))


if __name__ == "__main__":
    # By its name, so that a message carries the client app's function by name, not by value.
    from benchmarks.peers import flower_simulation

    flower_simulation.main()
