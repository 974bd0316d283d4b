"""One client's training and evaluation: vectors in, vectors out, one model kept for both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedge.errors import TaskError, UpdateRejected
from fedge.params import Layout, Vector
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.rng import stream_seed
from fedge.settings import Hyperparameters
from fedge.task import Examples, Task
from fedge.training.dpsgd import run_dpsgd
from fedge.training.evaluate import Values, example_losses, mean_metrics
from fedge.training.sgd import run_sgd
from fedge.training.snapshot import Keeper
from fedge.training.terms import make_term
from fedge.weights import build_checked_model, layout_of, read_vector, write_vector

NO_EXAMPLES = "there are no examples to train on"
BROKEN_PARENT = "the global weights are not finite; nothing was trained"
DIVERGED = "training diverged: its weights are not finite; lower learning_rate"


@dataclass(frozen=True)
class LocalResult:
    """One client's training.

    Attributes:
        delta: trained weights less those that training started from.
        num_steps: steps taken; fewer than planned only if training was told to stop.
        loss: mean training loss; under DP it is not covered by ε and stays on the device.
    """

    delta: Vector
    num_steps: int
    seconds: float
    loss: float


class LocalTrainer:
    """Trains and evaluates a task's model; not for use by several threads at once.

    Args:
        task: what is learnt; its model is built once.

    Raises:
        TaskError: the model cannot be trained privately and averaged.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._model = build_checked_model(task)
        self.layout: Layout = layout_of(self._model)

    def initial_weights(self, seed: int) -> Vector:
        """Return freshly initialised weights, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "initial-weights"))
            return read_vector(self._task.build_model(), self.layout)

    def train(
        self,
        parent: Vector,
        examples: Examples,
        hyper: Hyperparameters,
        *,
        draws: Draws,
        plan: DpPlan | None = None,
        should_stop: Callable[[], bool] | None = None,
        correction: Vector | None = None,
        keeper: Keeper | None = None,
    ) -> LocalResult:
        """Train from the parent weights by DP-SGD as planned, or by SGD without a plan.

        Args:
            parent: global weights, with the client's own values in personal layers.
            examples: this client's own; all must be finite.
            hyper: how to train; under DP the plan decides about batches, steps and clipping.
            draws: batches, noise and dropout; secure ones on a device.
            plan: what the ledger reserved; None trains without DP.
            should_stop: asked before each step; True ends training with the steps so far.
            correction: SCAFFOLD's server control less this client's; None is zero.
            keeper: training goes on from what it recalls, and tells it every step; it must be of
                the same training, its parent and plan included.

        Raises:
            TaskError: there are no examples, an example is not finite, the correction cannot be
                used, or training diverged.
        """
        if len(examples) == 0:
            raise TaskError(NO_EXAMPLES)
        if not np.isfinite(parent).all():
            raise TaskError(BROKEN_PARENT)
        began = time.monotonic()
        stop = should_stop or _never
        self._load(parent)
        term = make_term(self._model, self.layout, hyper, correction)
        self._model.train()
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed also seeds devices that are not there, at 0.12 ms a call.
            torch.default_generator.manual_seed(draws.seed())
            if plan is None:
                progress = run_sgd(
                    self._model, self._task, examples, hyper, draws, stop, term, keeper
                )
            else:
                progress = run_dpsgd(
                    self._model, self._task, examples, hyper, plan, draws, stop, term, keeper
                )
        delta = read_vector(self._model, self.layout) - parent
        if not np.isfinite(delta).all():
            raise TaskError(DIVERGED)
        return LocalResult(delta, progress.num_steps, time.monotonic() - began, progress.loss)

    def evaluate(self, weights: Vector, examples: Examples) -> dict[str, float]:
        """Return the mean ``loss`` and the task's metrics."""
        self._load(weights)
        return mean_metrics(self._model, self._task, examples)

    def losses(self, weights: Vector, examples: Examples) -> Values:
        """Return each example's loss, ``[N]``."""
        self._load(weights)
        return example_losses(self._model, self._task, examples)

    def _load(self, weights: Vector) -> None:
        try:
            write_vector(self._model, self.layout, weights)
        except UpdateRejected as error:
            raise TaskError(f"the weights do not fit the task's model: {error}") from error


def _never() -> bool:
    return False
