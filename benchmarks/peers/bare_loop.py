"""The limit: one process a core, a plain torch loop over its share of the clients, a sum.

Nothing is drawn, checked, recorded or kept: what remains is the arithmetic as stock torch does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.rounds import run_rounds
from benchmarks.peers.work import Work, build_model, data_of, print_rounds, read_argument


def train_share(work: Work, clients: Sequence[int], weights: list[Tensor]) -> list[Tensor]:
    """Return the sum of the trained weights over some clients."""
    inputs, targets = data_of(work)
    model = _model(work.model)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=work.learning_rate)
    sums = [torch.zeros_like(weight) for weight in weights]
    for client in clients:
        load(parameters, weights)
        batches = zip(
            torch.split(inputs[client], work.batch_size),
            torch.split(targets[client], work.batch_size),
            strict=True,
        )
        for batch_inputs, batch_targets in batches:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(batch_inputs), batch_targets)
            torch.autograd.backward(loss)
            optimizer.step()
        for total, parameter in zip(sums, parameters, strict=True):
            total += parameter.detach()
    return sums


def load(parameters: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Copy weights into a model's parameters."""
    with torch.no_grad():
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.copy_(weight)


@cache
def _model(name: str) -> nn.Module:
    return build_model(name)


def main() -> None:
    """Run what the command line names."""
    print_rounds(run_rounds(read_argument(), train_share))


if __name__ == "__main__":
    # By its name, so that the processes it starts find the function there.
    from benchmarks.peers import bare_loop

    bare_loop.main()
