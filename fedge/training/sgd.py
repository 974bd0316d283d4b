"""One client's plain SGD over shuffled mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fedge.privacy.noise import Draws
from fedge.settings import Hyperparameters
from fedge.task import Examples, Task
from fedge.training.batches import check_finite, check_losses, to_tensors
from fedge.training.progress import Progress
from fedge.training.snapshot import Keeper, Kept
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
    keeper: Keeper | None = None,
) -> Progress:
    """Train the model in place for the local epochs; the last batch of each may be smaller.

    Raises:
        TaskError: an example or loss is not finite.
    """
    inputs, targets = to_tensors(examples)
    optimizer = make_optimizer(trained_parameters(model), hyper)
    kept = Kept(keeper, model, optimizer, examples)
    progress, epoch, left, is_same = kept.resume()
    if not is_same:
        # Samples came or went since: what is left of the epoch is drawn from those there are.
        left = draws.permutation(len(examples))[: len(left)]
    batches = _Batches(len(examples), hyper, draws, epoch, left)
    for batch in batches:
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
        kept.note(progress, batches.epoch, batches.left)
    return progress


class _Batches:
    """Each epoch's batches in turn, and where they have got to.

    Attributes:
        epoch: epochs begun.
        left: positions of this epoch that no batch has had yet.
    """

    def __init__(
        self, num_examples: int, hyper: Hyperparameters, draws: Draws, epoch: int, left: Tensor
    ) -> None:
        self._num_examples = num_examples
        self._hyper = hyper
        self._draws = draws
        self.epoch = epoch
        self.left = left

    def __iter__(self) -> Iterator[Tensor]:
        """Return batch after batch; `left` is without the one that was returned last."""
        size = self._hyper.batch_size
        while len(self.left) or self.epoch < self._hyper.local_epochs:
            if not len(self.left):
                self.left = self._draws.permutation(self._num_examples)
                self.epoch += 1
            batch, self.left = self.left[:size], self.left[size:]
            yield batch


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
