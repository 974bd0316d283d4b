"""Who does the work that needs torch: plan a round, train, evaluate.

A `Worker` may live in this process (`InProcessWorker`: simulation, ``flwr run .``) or behind a
pipe in the training process (`edge_client.process_worker`). This module imports torch only when
an `InProcessWorker` first works.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from fedge.errors import TaskError
from fedge.messages import Evaluation
from fedge.params import Vector
from fedge.privacy.accounting import Spend, epsilon
from fedge.privacy.planning import DpPlan, choose_noise, plan_round, public_count
from fedge.settings import Hyperparameters, PrivacyConfig
from fedge.task import Examples, Split, Task

if TYPE_CHECKING:
    from fedge.privacy.noise import Draws
    from fedge.training.local import LocalTrainer
    from fedge.training.snapshot import Keeper

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ask:
    """What a plan for one round depends on.

    Attributes:
        layout_digest: layout of the server's weights.
        num_rounds_left: rounds still planned, this one included.
        spent: everything this device has spent or reserved.
        noise_multiplier: what was fixed when the run began; None fixes it now.
    """

    layout_digest: str
    hyper: Hyperparameters
    privacy: PrivacyConfig
    num_rounds_left: int
    spent: tuple[Spend, ...] = ()
    noise_multiplier: float | None = None


@dataclass(frozen=True)
class Proposal:
    """What one round would do and cost; nothing is spent yet.

    Attributes:
        num_examples: public example weight; 0 when there is nothing to train on.
        plan: None without DP (or without examples).
        epsilon_before, epsilon_after: of everything spent, without and with this round.
    """

    num_examples: float
    plan: DpPlan | None = None
    epsilon_before: float = 0.0
    epsilon_after: float = 0.0


@dataclass(frozen=True)
class Trained:
    """The outcome of one round of local training.

    Attributes:
        delta: trained weights less the parent's.
    """

    delta: Vector
    num_steps: int
    seconds: float


class Worker(Protocol):
    """Plans, trains and evaluates on the device's own examples."""

    def propose(self, ask: Ask) -> Proposal:
        """Return what a round would do and cost.

        Raises:
            TrainingPaused: this device does not train now.
            TaskError: model or data cannot be used, or the layout is another.
            BudgetExhausted: no noise makes the planned rounds fit the budget.
        """
        ...

    def train(
        self,
        layout_digest: str,
        weights: Vector,
        hyper: Hyperparameters,
        plan: DpPlan | None,
        correction: Vector | None = None,
        *,
        round_id: str = "",
    ) -> Trained:
        """Train from the given weights, with DP-SGD when there is a plan.

        Args:
            correction: SCAFFOLD's server control less this device's; None is zero.
            round_id: under which the steps are kept; asked again with the same, training may go
                on where it was. Empty keeps none.

        Raises:
            OutOfMemory: it needs more than it may have.
        """
        ...

    def evaluate(self, layout_digest: str, weights: Vector) -> Evaluation | None:
        """Return true metrics of the holdout, or None when it is empty."""
        ...


def propose_round(ask: Ask, num_examples: int) -> Proposal:
    """Return what a round on so many examples would do and cost.

    Raises:
        BudgetExhausted: no noise makes the planned rounds fit the budget.
    """
    if num_examples < 1:
        return Proposal(0.0)
    if not ask.privacy.enabled:
        return Proposal(public_count(ask.privacy, num_examples))
    noise_multiplier = ask.noise_multiplier or choose_noise(
        ask.privacy, ask.hyper, num_examples, num_rounds=ask.num_rounds_left, spent=ask.spent
    )
    plan = plan_round(ask.privacy, ask.hyper, num_examples, noise_multiplier=noise_multiplier)
    delta = ask.privacy.delta
    return Proposal(
        num_examples=plan.num_examples,
        plan=plan,
        epsilon_before=epsilon(ask.spent, delta),
        epsilon_after=epsilon([*ask.spent, plan.spend], delta),
    )


class InProcessWorker:
    """Works in this process.

    Args:
        task: what is learnt.
        examples: returns the device's examples of a split.
        draws: makes the randomness of one training; None takes the operating system's entropy.
        should_stop: asked before every step; a training that it ends keeps the steps so far.
    """

    def __init__(
        self,
        task: Task,
        examples: Callable[[Split], Examples],
        *,
        draws: Callable[[], Draws] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._task = task
        self._examples = examples
        self._draws = draws
        self._should_stop = should_stop

    @cached_property
    def trainer(self) -> LocalTrainer:
        """Trainer of the task, made when it is first needed."""
        from fedge.training.local import LocalTrainer

        return LocalTrainer(self._task)

    def propose(self, ask: Ask) -> Proposal:
        """Return what a round would do and cost; see `Worker.propose`."""
        self._check(ask.layout_digest)
        with _kept_home(ask.privacy.enabled):
            num_examples = len(self._examples("train"))
        return propose_round(ask, num_examples)

    def train(
        self,
        layout_digest: str,
        weights: Vector,
        hyper: Hyperparameters,
        plan: DpPlan | None,
        correction: Vector | None = None,
        *,
        round_id: str = "",
        keeper: Keeper | None = None,
    ) -> Trained:
        """Train from the given weights; see `Worker.train`.

        Args:
            keeper: keeps the steps; without one none are kept, whatever the round's id.
        """
        del round_id
        self._check(layout_digest)
        with _kept_home(plan is not None):
            result = self.trainer.train(
                weights,
                self._examples("train"),
                hyper,
                draws=self._fresh_draws(),
                plan=plan,
                should_stop=self._should_stop,
                correction=correction,
                keeper=keeper,
            )
        return Trained(result.delta, result.num_steps, result.seconds)

    def evaluate(self, layout_digest: str, weights: Vector) -> Evaluation | None:
        """Return true metrics of the holdout; see `Worker.evaluate`."""
        self._check(layout_digest)
        holdout = self._examples("holdout")
        if len(holdout) < 1:
            return None
        return Evaluation(float(len(holdout)), self.trainer.evaluate(weights, holdout))

    def _fresh_draws(self) -> Draws:
        if self._draws is not None:
            return self._draws()
        from fedge.privacy.noise import Draws

        return Draws.secure()

    def _check(self, layout_digest: str) -> None:
        own = self.trainer.layout.digest
        if layout_digest != own:
            raise TaskError(
                f"the server's model has layout {layout_digest[:12]}, task {self._task.name!r} "
                f"here builds {own[:12]}: give both sides the same task and options"
            )


@contextmanager
def _kept_home(private: bool) -> Iterator[None]:
    """Under DP, log what is wrong with the data here and tell the server only that it is."""
    try:
        yield
    except TaskError as error:
        if not private:
            raise
        _log.warning("this device cannot train on its data: %s", error)
        raise TaskError("this device cannot train on its data; its log says why") from None
