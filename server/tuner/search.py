"""One search: candidates in virtual federations, round by round, the worse ones dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedge.training.evaluate import Values as Losses
from server.checkpoint import Checkpoint
from server.settings import ServerConfig
from server.tuner.federation import Trial, VirtualFederation
from server.tuner.pruners import Pruner
from server.tuner.space import Values

LOSS_FLOOR = 1e-6
"""A mean loss below this counts as this, so that its logarithm is finite."""
DIVERGED_GAIN = -10.0
"""Of a candidate whose weights or losses are not finite; no other's is below it."""


@dataclass
class Candidate:
    """What became of one point.

    Attributes:
        correction: what real rounds add to the gain.
        gain: fall of the logarithm of the held-out mean loss, from the parent to the last virtual
            round that it went through, corrected; `DIVERGED_GAIN` where it diverged.
        ranks: by virtual round, share of the other candidates there that it beats.
        finished: whether it went through every virtual round.
        losses: of each held-out example after its last virtual round.
    """

    values: Values
    proposed: bool
    correction: float = 0.0
    gain: float = 0.0
    ranks: dict[int, float] = field(default_factory=dict)
    finished: bool = False
    losses: Losses | None = None


def search(
    federation: VirtualFederation,
    state: Checkpoint,
    candidates: Sequence[Candidate],
    configs: Sequence[ServerConfig],
    *,
    num_rounds: int,
    pruner: Pruner,
    incumbent: int = 0,
) -> None:
    """Fill in how each candidate fares.

    Args:
        federation: where they are tried.
        state: what they all begin from.
        candidates: the points.
        configs: of the server with each point's values.
        num_rounds: virtual rounds of those that are never dropped.
        pruner: how many go on after each round.
        incumbent: the candidate that is never dropped, so that the best can be compared with it.
    """
    before = log_mean(federation.losses(state.weights))
    trials = federation.open(state, configs)
    alive = list(range(len(candidates)))
    for number in range(1, num_rounds + 1):
        federation.advance([trials[at] for at in alive], number)
        for at in alive:
            _score(federation, trials[at], candidates[at], before)
        order = sorted(alive, key=lambda at: -candidates[at].gain)
        for at in alive:
            candidates[at].ranks[number] = _rank(candidates[at], [candidates[i] for i in alive])
        if number == num_rounds:
            break
        alive = order[: pruner(len(order))]
        if incumbent not in alive:
            alive.append(incumbent)
    for at in alive:
        candidates[at].finished = True


def best_of(candidates: Sequence[Candidate], incumbent: Candidate) -> Candidate:
    """Return the best candidate that finished, or the incumbent unless it is clearly worse.

    Clearly: by more than a standard error of the paired difference of held-out losses. Else noise
    would move the choice in every round.
    """
    best = max((each for each in candidates if each.finished), key=lambda each: each.gain)
    if best is incumbent or best.losses is None:
        return incumbent
    if incumbent.losses is None:
        return best
    differences = incumbent.losses - best.losses
    error = float(np.std(differences)) / np.sqrt(len(differences))
    # As a fall of the logarithm, which is what gains are.
    error /= max(float(np.mean(incumbent.losses)), LOSS_FLOOR)
    return best if best.gain - incumbent.gain > error else incumbent


def log_mean(losses: Losses) -> float:
    """Return the logarithm of the mean loss; losses are taken to be above 0."""
    return float(np.log(max(float(np.mean(losses)), LOSS_FLOOR)))


def _score(
    federation: VirtualFederation, trial: Trial, candidate: Candidate, before: float
) -> None:
    candidate.losses = None
    if trial.state is not None:
        losses = federation.losses(trial.state.weights)
        if np.isfinite(losses).all():
            candidate.losses = losses
    if candidate.losses is None:
        candidate.gain = DIVERGED_GAIN
    else:
        gain = before - log_mean(candidate.losses) + candidate.correction
        candidate.gain = max(gain, DIVERGED_GAIN)


def _rank(candidate: Candidate, among: Sequence[Candidate]) -> float:
    """Return the share of the others that are worse, ties by half."""
    if len(among) == 1:
        return 1.0
    worse = sum(candidate.gain > each.gain for each in among)
    even = sum(candidate.gain == each.gain for each in among) - 1
    return (worse + even / 2) / (len(among) - 1)
