"""Columns of figures out of rounds, and curves over the seeds of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulation.report.runs import Rounds

Column = Callable[[Rounds], NDArray[np.float64]]
"""Makes one number of each round, NaN where it is absent: [R]."""

MAX_POINTS = 600


@dataclass(frozen=True, eq=False)
class Curve:
    """What is drawn of one run: mean over its seeds, and the least and largest.

    Attributes:
        x, mean, low, high: [P], finite, x ascending.
    """

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    num_seeds: int = 1

    def scaled(self, x: float, y: float) -> Curve:
        """Return the curve in other units, one of which is ``x`` (``y``) of the old ones."""
        return Curve(self.x / x, self.mean / y, self.low / y, self.high / y, self.num_seeds)


def lookup(metrics: Mapping[str, Any], path: str) -> Any:
    """Return what stands at a dotted path, None where nothing does."""
    value: Any = metrics
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def number(value: Any) -> float:
    """Return a finite number as it is and anything else as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def at(path: str) -> Column:
    """Return the column of the numbers at a dotted path."""
    return lambda rounds: np.array([number(lookup(each, path)) for each in rounds])


def total_of(*paths: str) -> Column:
    """Return the column of running totals; NaN throughout where no round has any of them."""

    def column(rounds: Rounds) -> NDArray[np.float64]:
        parts = np.array([at(path)(rounds) for path in paths])
        if np.isnan(parts).all():
            return np.full(len(rounds), math.nan)
        totals: NDArray[np.float64] = np.cumsum(np.nan_to_num(parts).sum(axis=0))
        return totals

    return column


def virtual_s(rounds: Rounds) -> NDArray[np.float64]:
    """Return virtual seconds at the end of each round; 0 at round 0, which takes none."""
    column = at("simulation.virtual_s")(rounds)
    if rounds and rounds[0]["round"] == 0 and math.isnan(column[0]) and not np.isnan(column).all():
        column[0] = 0.0
    return column


def largest_epsilon(rounds: Rounds) -> NDArray[np.float64]:
    """Return the largest ε of any node after each round; NaN where none is reported."""
    found = [largest(each.get("epsilon")) for each in rounds]
    return np.array([math.nan if each is None else each for each in found])


def largest(by_node: Any) -> float | None:
    """Return the largest finite number of a mapping, None where there is none."""
    values = by_node.values() if isinstance(by_node, Mapping) else ()
    return max((each for each in map(number, values) if not math.isnan(each)), default=None)


def curve(seeds: Sequence[Rounds], x: Column, y: Column) -> Curve | None:
    """Return the curve of a run, None where no seed has both numbers in any round.

    Seeds that stop at different places are interpolated where all of them have points: virtual
    time and bytes differ from seed to seed.
    """
    points = [_points(rounds, x, y) for rounds in seeds]
    points = [each for each in points if each[0].size]
    if not points:
        return None
    first = max(xs[0] for xs, _ in points)
    last = min(xs[-1] for xs, _ in points)
    grid = np.unique(np.concatenate([xs for xs, _ in points]))
    grid = _thin(grid[(grid >= first) & (grid <= last)])
    if not grid.size:
        return None
    values = np.array([np.interp(grid, xs, ys) for xs, ys in points])
    return Curve(grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0), len(points))


def _points(
    rounds: Rounds, x: Column, y: Column
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    xs, ys = x(rounds), y(rounds)
    known = ~(np.isnan(xs) | np.isnan(ys))
    order = np.argsort(xs[known], kind="stable")
    return xs[known][order], ys[known][order]


def _thin(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return at most `MAX_POINTS` of the points, both ends among them."""
    if grid.size <= MAX_POINTS:
        return grid
    kept: NDArray[np.float64] = grid[np.linspace(0, grid.size - 1, MAX_POINTS).round().astype(int)]
    return kept


def outcomes(seeds: Sequence[Rounds]) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Return the rounds that every seed has, and clients by outcome in each, mean over seeds.

    Returns:
        rounds [R] ascending, and counts [R] by outcome; both empty where nothing was counted.
    """
    counted = [
        {each["round"]: counts for each in rounds if (counts := _counts(each))} for rounds in seeds
    ]
    counted = [each for each in counted if each]
    if not counted:
        return np.empty(0), {}
    common = sorted(set.intersection(*(set(each) for each in counted)))
    names = sorted({name for each in counted for counts in each.values() for name in counts})
    sums = {
        name: np.array([sum(each[round].get(name, 0.0) for each in counted) for round in common])
        for name in names
    }
    means = {name: values / len(counted) for name, values in sums.items()}
    return np.array(common, dtype=float), means


def _counts(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = lookup(metrics, "simulation.outcomes")
    if not isinstance(found, Mapping):
        return {}
    counts = {str(name): number(value) for name, value in found.items()}
    return {name: count for name, count in counts.items() if count >= 0}


def deciles(seeds: Sequence[Rounds]) -> tuple[Curve, int] | None:
    """Return accuracy by decile of clients at the last evaluation of each seed, and its round.

    None where no seed has any. The x axis is the share of clients at or below, in percent.
    """
    rows, last = [], 0
    for rounds in seeds:
        for metrics in reversed(rounds):
            found = lookup(metrics, "evaluation.accuracy_deciles")
            row = [number(each) for each in found] if isinstance(found, list) else []
            if len(row) > 1 and not any(map(math.isnan, row)):
                rows.append(np.interp(np.linspace(0, 1, 11), np.linspace(0, 1, len(row)), row))
                last = max(last, metrics["round"])
                break
    if not rows:
        return None
    values = np.array(rows)
    share = np.linspace(0, 100, 11)
    drawn = Curve(share, values.mean(axis=0), values.min(axis=0), values.max(axis=0), len(rows))
    return drawn, last
