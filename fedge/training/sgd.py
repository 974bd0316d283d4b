"""One client's plain SGD over shuffled mini-batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fedge.privacy.noise import Draws
from fedge.settings import Hyperparameters
from fedge.task import Examples, Task
from fedge.training.batches import check_finite, check_losses, to_tensors
from fedge.training.progress import Progress
from fedge.training.terms import NO_TERM, ClientTerm

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


def run_sgd(
    model: nn.Module,
    task: Task,
    examples: Examples,
    hyper: Hyperparameters,
    draws: Draws,
    should_stop: Callable[[], bool],
    term: ClientTerm = NO_TERM,
) -> Progress:
    """Train the model in place for the local epochs; the last batch of each may be smaller.

    Raises:
        TaskError: an example or loss is not finite.
    """
    inputs, targets = to_tensors(examples)
    optimizer = make_optimizer(trained_parameters(model), hyper)
    progress = Progress()
    for _ in range(hyper.local_epochs):
        for batch in torch.split(draws.permutation(len(examples)), hyper.batch_size):
            if should_stop():
                return progress
            optimizer.zero_grad()
            losses = check_losses(task.loss(model(inputs[batch]), targets[batch]), len(batch))
            check_finite(losses.detach(), batch, "loss", progress.num_steps)
            losses.mean().backward()  # type: ignore[no-untyped-call]
            term.add_to_gradients()
            optimizer.step()
            progress.add_losses(losses)
            progress.num_steps += 1
    return progress


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_optimizer(parameters: list[nn.Parameter], hyper: Hyperparameters) -> torch.optim.Optimizer:
    """Return the optimiser that the hyperparameters name, with weight decay in the gradients."""
    if hyper.optimizer == "adam":
        return torch.optim.Adam(
            parameters,
            lr=hyper.learning_rate,
            betas=ADAM_BETAS,
            eps=ADAM_EPS,
            weight_decay=hyper.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=hyper.learning_rate,
        momentum=hyper.momentum,
        weight_decay=hyper.weight_decay,
    )
