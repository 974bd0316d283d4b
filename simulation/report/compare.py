"""The table of runs: what each came to, and in which settings they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from simulation.quantities import format_bytes, format_duration, mean_and_spread
from simulation.report.runs import Rounds, Run
from simulation.report.series import at, largest_epsilon, total_of
from simulation.run_folder import flatten_config

NOT_COMPARED = ("server.run_dir", "server.run_name")
UNKNOWN = "–"


@dataclass(frozen=True)
class RunRow:
    """One line of the table; every figure as text.

    Attributes:
        differences: settings whose values are not the same in all runs, by dotted key.
        cells: in the order of `HEADINGS`.
    """

    name: str
    folder: str
    num_seeds: int
    differences: dict[str, str]
    cells: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """One key of the settings and its value in each run, as text."""

    key: str
    values: tuple[str, ...]
    differs: bool


@dataclass(frozen=True)
class _Figure:
    heading: str
    of_seed: Callable[[Rounds], float]
    over_seeds: Callable[[Sequence[float]], str]


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Return every setting of any run, those that differ first."""
    flat = [flatten_config(run.config) for run in runs]
    known = [each for each in flat if each is not None]
    keys = sorted({key for each in known for key in each})
    settings = []
    for key in keys:
        values = tuple(UNKNOWN if each is None else each.get(key, UNKNOWN) for each in flat)
        own = {each.get(key, UNKNOWN) for each in known}
        settings.append(Setting(key, values, len(own) > 1 and not _is_own(key, runs)))
    return sorted(settings, key=lambda setting: not setting.differs)


def rows_of(runs: Sequence[Run], settings: Sequence[Setting]) -> list[RunRow]:
    """Return the lines of the table."""
    return [
        RunRow(
            run.name,
            str(run.folder),
            len(run.seeds),
            {
                each.key: each.values[index]
                for each in settings
                if each.differs and run.config is not None
            },
            tuple(_cell(figure, run) for figure in _FIGURES),
            _notes(run),
        )
        for index, run in enumerate(runs)
    ]


def _is_own(key: str, runs: Sequence[Run]) -> bool:
    """Tell whether a setting differs by nature: where a run is kept, the seed of a group."""
    return key in NOT_COMPARED or (key == "server.seed" and any(run.is_group for run in runs))


def _notes(run: Run) -> tuple[str, ...]:
    missing = (
        () if run.config is not None else ("Its folder has no config.json: settings unknown.",)
    )
    return (*dict.fromkeys(run.notes), *missing)


def _cell(figure: _Figure, run: Run) -> str:
    values = [figure.of_seed(seed.rounds) for seed in run.seeds]
    known = [value for value in values if math.isfinite(value)]
    return figure.over_seeds(known) if known else UNKNOWN


def _last_of(path: str) -> Callable[[Rounds], float]:
    return lambda rounds: _pick(at(path)(rounds), -1)


def _pick(values: Any, index: int) -> float:
    known = values[np.isfinite(values)]
    return float(known[index]) if known.size else math.nan


def _best_accuracy(rounds: Rounds) -> float:
    return _largest(at("accuracy_test")(rounds))


def _largest(values: Any) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else math.nan


def _median_speed(rounds: Rounds) -> float:
    values = at("simulation.clients_per_s")(rounds)
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else math.nan


def _total(path: str) -> Callable[[Rounds], float]:
    return lambda rounds: _pick(total_of(path)(rounds), -1)


def _peak_memory(rounds: Rounds) -> float:
    peak = _largest(at("simulation.peak_rss_bytes")(rounds))
    return peak if math.isfinite(peak) else _largest(at("simulation.rss_bytes")(rounds))


def _epsilon(rounds: Rounds) -> float:
    return _largest(largest_epsilon(rounds))


def _rounds_text(values: Sequence[float]) -> str:
    low, high = int(min(values)), int(max(values))
    return str(low) if low == high else f"{low} to {high}"


_FIGURES = (
    _Figure("rounds", _last_of("round"), _rounds_text),
    _Figure("final accuracy", _last_of("accuracy_test"), mean_and_spread),
    _Figure("best accuracy", _best_accuracy, mean_and_spread),
    _Figure("clients/s", _median_speed, lambda values: f"{fmean(values):,.0f}"),
    _Figure("bytes down", _total("simulation.bytes_down"), lambda v: format_bytes(fmean(v))),
    _Figure("bytes up", _total("simulation.bytes_up"), lambda v: format_bytes(fmean(v))),
    _Figure("virtual time", _last_of("simulation.virtual_s"), lambda v: format_duration(fmean(v))),
    _Figure("peak memory", _peak_memory, lambda values: format_bytes(max(values))),
    _Figure("ε, devices", _epsilon, lambda values: f"{max(values):.3f}"),
    _Figure("ε, central", _last_of("epsilon_central"), lambda values: f"{max(values):.3f}"),
)

HEADINGS = tuple(figure.heading for figure in _FIGURES)
