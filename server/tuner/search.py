"""One generation: candidates in virtual federations, round by round, the worse ones dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedge.training.evaluate import Values as Losses
from server.checkpoint import Checkpoint
from server.settings import ServerConfig
from server.tuner.federation import Trial, VirtualFederation
from server.tuner.pruners import Pruner
from server.tuner.readouts import Readout
from server.tuner.space import Values

LOSS_FLOOR = 1e-6
"""A mean loss below this counts as this, so that its logarithm is finite."""
DIVERGED_GAIN = -10.0
"""Of a candidate whose weights or losses are not finite; no other's is below it."""
CLEAR_ERRORS = 2.0
"""Standard errors by which a candidate must be better than the values in use."""


@dataclass
class Candidate:
    """What became of one point.

    Attributes:
        correction: what real rounds add to the gain.
        gains: fall of the logarithm of the held-out mean loss from the parent to what is read out
            after a virtual round, corrected, by the rounds that it was scored after;
            `DIVERGED_GAIN` where it diverged.
        finished: whether it went through every virtual round.
        losses: of each held-out example when it was scored last.
    """

    values: Values
    proposed: bool
    correction: float = 0.0
    gains: dict[int, float] = field(default_factory=dict)
    finished: bool = False
    losses: Losses | None = None

    @property
    def gain(self) -> float:
        """The gain when it was scored last."""
        return self.gains[max(self.gains)]

    def score(self, losses: Losses | None, before: float, number: int) -> None:
        """Note what it came to after a virtual round.

        Args:
            losses: of each held-out example; None where training diverged.
            before: logarithm of the parent's mean loss.
            number: of the round.
        """
        self.losses = losses
        gain = DIVERGED_GAIN
        if losses is not None:
            gain = max(before - log_mean(losses) + self.correction, DIVERGED_GAIN)
        self.gains[number] = gain


def search(
    federation: VirtualFederation,
    state: Checkpoint,
    candidates: Sequence[Candidate],
    configs: Sequence[ServerConfig],
    *,
    num_rounds: int,
    pruner: Pruner,
    readout: Readout,
) -> None:
    """Fill in how each candidate fares.

    One that was not proposed is never dropped: it is what the best is compared with.

    Args:
        federation: where they are tried.
        state: what they all begin from.
        candidates: the points.
        configs: of the server with each point's values.
        num_rounds: virtual rounds of those that are never dropped.
        pruner: how many go on after each round.
        readout: gives the weights that are scored.
    """
    before = log_mean(federation.losses(state.weights))
    trials = federation.open(state, configs)
    alive = list(range(len(candidates)))
    for number in range(1, num_rounds + 1):
        federation.advance([trials[at] for at in alive], number)
        proposed = [at for at in alive if candidates[at].proposed]
        num_left = pruner(len(proposed), number, num_rounds)
        if num_left >= len(proposed) and number < num_rounds:
            continue
        for at in alive:
            candidates[at].score(_losses(federation, trials[at], readout), before, number)
        if number < num_rounds:
            order = sorted(proposed, key=lambda at: -candidates[at].gain)
            alive = [at for at in alive if at not in order[num_left:]]
    for at in alive:
        candidates[at].finished = True


def ranks(candidate: Candidate, among: Sequence[Candidate]) -> dict[int, float]:
    """Return which share of the others it beats, ties by half, by the rounds it was scored after.

    Args:
        candidate: one of those.
        among: all of one search.
    """
    found = {}
    for number, gain in candidate.gains.items():
        others = [
            each.gains[number] for each in among if each is not candidate and number in each.gains
        ]
        beaten = sum(gain > other for other in others) + sum(gain == other for other in others) / 2
        found[number] = beaten / len(others) if others else 1.0
    return found


def best_of(candidates: Sequence[Candidate], incumbent: Candidate) -> Candidate:
    """Return the best candidate that finished, or the incumbent unless it is clearly worse.

    Clearly: by more than two standard errors of the paired difference of held-out losses. Else
    noise would move the choice.
    """
    best = max((each for each in candidates if each.finished), key=lambda each: each.gain)
    if best is incumbent or best.losses is None:
        return incumbent
    if incumbent.losses is None:
        return best
    error = error_of_gain(incumbent.losses, best.losses)
    return best if best.gain - incumbent.gain > CLEAR_ERRORS * error else incumbent


def error_of_gain(before: Losses, after: Losses) -> float:
    """Return the standard error of the fall of the mean loss's logarithm, examples paired."""
    differences = before - after
    error = float(np.std(differences)) / np.sqrt(len(differences))
    return float(error / max(float(np.mean(before)), LOSS_FLOOR))


def log_mean(losses: Losses) -> float:
    """Return the logarithm of the mean loss; losses are taken to be above 0."""
    return float(np.log(max(float(np.mean(losses)), LOSS_FLOOR)))


def _losses(federation: VirtualFederation, trial: Trial, readout: Readout) -> Losses | None:
    """Return the loss of each held-out example; None where training diverged."""
    if trial.state is None:
        return None
    losses = federation.losses(readout(trial.path))
    return losses if np.isfinite(losses).all() else None
