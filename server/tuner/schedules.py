"""When searches after the first are due, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedge.naming import Registry
from server.tuner.settings import TunerConfig

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Schedule = Callable[[Sequence[float], int], str]
"""Says why no search is due; empty if one is.

It takes the gate set's losses since the last search, that of the weights which the search began
from first, and so many rounds as ``tuner.every_rounds`` says. A loss that is not known is infinite.
"""

SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register("stall")
def stall(losses: Sequence[float], every: int) -> str:
    """Search once so many rounds brought no new low of the loss.

    While it falls, a virtual federation would only find out that lower rates lower it at once.
    """
    if len(losses) <= every:
        return f"the last search is fewer than {every} rounds ago"
    if min(losses[-every:]) < min(losses[:-every]):
        return "real rounds still lower the gate set's loss"
    return ""


@SCHEDULES.register("interval")
def interval(losses: Sequence[float], every: int) -> str:
    """Search before every so many rounds."""
    return f"searched every {every} rounds" if len(losses) <= every else ""


def reason_against(config: TunerConfig, past: Sequence[FrozenTrial], loss: float | None) -> str:
    """Say why no search is due before the next round; empty if one is.

    Args:
        config: of the tuner.
        past: the trial of each real round, oldest first.
        loss: of the gate set now.
    """
    spent = sum(trial.user_attrs["passes"] for trial in past)
    if config.budget and spent >= config.budget:
        return "the budget is spent"
    searches = [at for at, trial in enumerate(past) if trial.user_attrs["searched"]]
    if not searches:
        return ""
    losses = [trial.user_attrs["loss_before"] for trial in past[searches[-1] :]] + [loss]
    known = [math.inf if each is None else each for each in losses]
    reason = SCHEDULES[config.schedule](known, config.every_rounds)
    return reason or _impatience(config.patience, [past[at] for at in searches], past[-1])


def _impatience(patience: int, searches: Sequence[FrozenTrial], last: FrozenTrial) -> str:
    latest = searches[-patience:] if patience else []
    if not len(latest) == patience > 0 or not all(each.user_attrs["kept"] for each in latest):
        return ""
    # A round that failed says nothing; what made the model worse asks for another search.
    worse = last.value is not None and last.value < 0
    return "" if worse else f"{patience} searches changed nothing"
