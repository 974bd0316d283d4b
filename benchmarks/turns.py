"""Several engines in turns, each at its best setting; ratios are medians over the turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.harness import CannotRun, progress
from benchmarks.peer_runs import PeerFailed
from benchmarks.peers.work import Work

_TRIES = 3


@dataclass(frozen=True)
class Side:
    """One engine and the settings it may be at its best with.

    Attributes:
        run: returns the seconds of each counted round.
    """

    run: Callable[[Work], list[float]]
    settings: Sequence[Work]


@dataclass(frozen=True)
class Outcome:
    """What came of one engine.

    Attributes:
        seconds: a round's, the median of each turn's rounds, at the best setting.
        settings: seconds a round by setting, of the first turn; None where it failed.
        best: name of the setting that the later turns use.
    """

    seconds: list[float]
    settings: dict[str, float | None]
    best: str


def take_turns(sides: Mapping[str, Side], num_turns: int) -> dict[str, Outcome]:
    """Run every engine in every turn: with all its settings in the first, then with the best.

    Raises:
        CannotRun: none of an engine's settings works here.
    """
    outcomes: dict[str, Outcome] = {}
    chosen: dict[str, Work] = {}
    for turn in range(num_turns):
        for name, side in sides.items():
            if turn == 0:
                chosen[name], outcomes[name] = _choose(name, side)
            else:
                outcomes[name].seconds.append(_again(side, chosen[name]))
            progress(f"turn {turn}: {name} {outcomes[name].seconds[-1]:.4f} s a round")
    return outcomes


def ratio(peer: Outcome, ours: Outcome) -> float:
    """Return how many times faster ours is, the median over turns."""
    return statistics.median(
        theirs / own for theirs, own in zip(peer.seconds, ours.seconds, strict=True)
    )


def describe(outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, object]]:
    """Return what was measured of each engine, for the result."""
    return {
        name: {
            "round_s": statistics.median(outcome.seconds),
            "turns_round_s": outcome.seconds,
            "setting": outcome.best,
            "settings_round_s": outcome.settings,
        }
        for name, outcome in outcomes.items()
    }


def _again(side: Side, work: Work) -> float:
    """Return the seconds of one more run; a peer that breaks off now and then may try again."""
    for _ in range(_TRIES - 1):
        try:
            return statistics.median(side.run(work))
        except PeerFailed as error:
            progress(f"it broke off and is run again: {error}")
    return statistics.median(side.run(work))


def _choose(name: str, side: Side) -> tuple[Work, Outcome]:
    found: dict[str, float | None] = {}
    best: tuple[float, Work] | None = None
    problem = ""
    for work in side.settings:
        try:
            seconds = statistics.median(side.run(work))
        except PeerFailed as error:
            problem = str(error)
            progress(f"{name} with {work.setting} failed: {problem}")
            found[work.setting] = None
            continue
        found[work.setting] = seconds
        progress(f"{name} with {work.setting}: {seconds:.4f} s a round")
        if best is None or seconds < best[0]:
            best = seconds, work
    if best is None:
        raise CannotRun(f"{name} works with none of its settings: {problem}")
    return best[1], Outcome([best[0]], found, best[1].setting)
