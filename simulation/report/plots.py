"""Which figures a report has, and why one of them may be missing."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from simulation.report.drawing import Drawing
from simulation.report.runs import Run
from simulation.report.series import (
    Column,
    at,
    curve,
    deciles,
    largest_epsilon,
    outcomes,
    total_of,
    virtual_s,
)

OUTCOME_COLORS = {"ok": 8, "late": 6, "drop-out": 1, "crash": 7, "memory": 3, "unavailable": 5}
OTHER_COLORS = (2, 4, 0, 9)
_UNITS: dict[str, tuple[tuple[int, str], ...]] = {
    "s": ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")),
    "bytes": ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes")),
}


@dataclass(frozen=True)
class LegendEntry:
    """A swatch of colour number ``index``, and what it stands for."""

    index: int
    name: str


@dataclass(frozen=True)
class Plot:
    """A figure that was drawn.

    Attributes:
        svg: one ``svg`` element; holds no text of the runs.
        caption: sentences below it.
        legend: what its colours mean where they are not those of the runs.
    """

    key: str
    title: str
    svg: str
    caption: str = ""
    legend: tuple[LegendEntry, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A figure that no run has the numbers for."""

    title: str
    reason: str


@dataclass(frozen=True)
class LinePlot:
    """One curve a run.

    Attributes:
        x: name of one of the x axes.
        needs: keys that a run must have written to be drawn.
        why: which runs write none.
        unit: of the y axis: ``bytes`` and ``s`` are scaled; else as in `Drawing`.
        dashed: a second curve of each run, where it has one.
    """

    key: str
    title: str
    x: str
    y: Column
    y_label: str
    needs: str
    why: str = ""
    unit: str = ""
    note: str = ""
    zero: bool = False
    dashed: Column | None = None


_X_AXES: dict[str, tuple[Column, str, str]] = {
    "round": (at("round"), "round", "round"),
    "time": (virtual_s, "virtual time", "s"),
    "bytes": (
        total_of("simulation.bytes_down", "simulation.bytes_up"),
        "sent, down and up together",
        "bytes",
    ),
}
_TEST = "accuracy on the test set"
_SIMULATED = "which only simulated rounds have"
_EVALUATED = "which federated evaluation writes (server.evaluate.every_rounds above 0)"

LINE_PLOTS = (
    LinePlot(
        "accuracy-round",
        "Accuracy by round",
        "round",
        at("accuracy_test"),
        _TEST,
        "accuracy_test",
        "which a task without a metric called accuracy does not have",
    ),
    LinePlot(
        "accuracy-time",
        "Accuracy by virtual time",
        "time",
        at("accuracy_test"),
        _TEST,
        "accuracy_test with simulation.virtual_s",
        _SIMULATED,
    ),
    LinePlot(
        "accuracy-bytes",
        "Accuracy by bytes sent",
        "bytes",
        at("accuracy_test"),
        _TEST,
        "accuracy_test with simulation.bytes_down and bytes_up",
        _SIMULATED,
    ),
    LinePlot(
        "loss", "Loss by round", "round", at("loss_test"), "mean loss on the test set", "loss_test"
    ),
    LinePlot(
        "worst-tenth",
        "Fairness: worst tenth of clients",
        "round",
        at("evaluation.accuracy_worst_tenth"),
        "accuracy, own holdouts",
        "evaluation.accuracy_worst_tenth",
        _EVALUATED,
        dashed=at("evaluation.accuracy"),
        note="Dashed: mean over all clients that answered.",
    ),
    LinePlot(
        "epsilon",
        "Privacy spent",
        "round",
        largest_epsilon,
        "ε, all rounds together",
        "epsilon of a device, nor epsilon_central",
        "which runs without differential privacy do not have",
        dashed=at("epsilon_central"),
        note="Solid: largest ε of any device, for its examples. Dashed: ε of each client towards "
        "everyone but the server.",
        zero=True,
    ),
    LinePlot(
        "clients-per-s",
        "Simulation speed",
        "round",
        at("simulation.clients_per_s"),
        "clients/s of real time",
        "simulation.clients_per_s",
        _SIMULATED,
        unit="count",
        zero=True,
    ),
    LinePlot(
        "memory",
        "Memory of the simulation",
        "round",
        at("simulation.rss_bytes"),
        "resident",
        "simulation.rss_bytes",
        _SIMULATED,
        unit="bytes",
        zero=True,
    ),
)


def draw_plots(runs: Sequence[Run]) -> tuple[list[Plot], list[LeftOut]]:
    """Draw every figure that at least one run has the numbers for."""
    drawn = [_draw_lines(spec, runs) for spec in LINE_PLOTS]
    drawn.insert(4, _draw_deciles(runs))
    drawn += _draw_outcomes(runs)
    plots = [each for each in drawn if isinstance(each, Plot)]
    return plots, [each for each in drawn if isinstance(each, LeftOut)]


def _draw_lines(spec: LinePlot, runs: Sequence[Run]) -> Plot | LeftOut:
    x, x_label, x_unit = _X_AXES[spec.x]
    seeds = [[seed.rounds for seed in run.seeds] for run in runs]
    solid = [curve(rounds, x, spec.y) for rounds in seeds]
    dashed = [spec.dashed and curve(rounds, x, spec.dashed) for rounds in seeds]
    shown = [each for each in [*solid, *dashed] if each is not None]
    if not shown:
        return LeftOut(spec.title, _reason(spec.needs, spec.why, runs))
    x_scale, x_label = _scaled(x_label, x_unit, max(each.x.max() for each in shown))
    y_scale, y_label = _scaled(spec.y_label, spec.unit, max(each.high.max() for each in shown))
    drawing = Drawing(spec.key, x_label, y_label, (x_unit, spec.unit))
    for curves, dashes in ((solid, None), (dashed, "4 3")):
        for index, each in enumerate(curves):
            if each is not None:
                drawing.curve(index, each.scaled(x_scale, y_scale), dashes=dashes)
    if spec.zero:
        drawing.from_zero()
    pairs = zip(runs, solid, dashed, strict=True)
    without = [run for run, one, two in pairs if one is None and two is None]
    return Plot(spec.key, spec.title, drawing.svg(), _caption(spec.note, without, spec.needs))


def _draw_deciles(runs: Sequence[Run]) -> Plot | LeftOut:
    title = "Fairness: accuracy over clients"
    needs = "evaluation.accuracy_deciles"
    found = [deciles([seed.rounds for seed in run.seeds]) for run in runs]
    if not any(found):
        return LeftOut(title, _reason(needs, _EVALUATED, runs))
    drawing = Drawing("deciles", "clients, % from the worst", "accuracy, own holdouts", ("", ""))
    for index, each in enumerate(found):
        if each is not None:
            drawing.curve(index, each[0])
    rounds = sorted({each[1] for each in found if each is not None})
    when = f"after round {rounds[0]}" if len(rounds) == 1 else "at each run's last evaluation"
    note = f"Deciles {when}; the flatter, the fairer."
    without = [run for run, each in zip(runs, found, strict=True) if each is None]
    return Plot("deciles", title, drawing.svg(), _caption(note, without, needs))


def _draw_outcomes(runs: Sequence[Run]) -> list[Plot | LeftOut]:
    """Draw one figure a run: stacks upon each other cannot be compared."""
    found = [outcomes([seed.rounds for seed in run.seeds]) for run in runs]
    present = {name for _, counts in found for name in counts}
    colors = _outcome_colors(present)
    drawn: list[Plot | LeftOut] = []
    for index, (run, (rounds, counts)) in enumerate(zip(runs, found, strict=True)):
        key = f"outcomes-{index}"
        title = "What became of the clients" + (f": {run.name}" if len(runs) > 1 else "")
        if not rounds.size:
            drawn.append(LeftOut(title, _reason("simulation.outcomes", _SIMULATED, [run])))
            continue
        names = [name for name in colors if name in counts]
        drawing = Drawing(key, "round", "clients asked", ("round", "count"))
        drawing.stack(rounds, [(colors[name], counts[name]) for name in names])
        legend = tuple(LegendEntry(colors[name], name) for name in names)
        note = "Mean over seeds." if len(run.seeds) > 1 else ""
        drawn.append(Plot(key, title, drawing.svg(), note, legend))
    return drawn


def _outcome_colors(present: Collection[str]) -> dict[str, int]:
    """Return the outcomes that occur, from the bottom up, and the number of each one's color."""
    others = sorted(set(present) - set(OUTCOME_COLORS))
    known = {name: color for name, color in OUTCOME_COLORS.items() if name in present}
    return {**known, **dict(zip(others, itertools.cycle(OTHER_COLORS), strict=False))}


def _scaled(label: str, unit: str, largest: float) -> tuple[float, str]:
    """Return the unit that suits numbers so large, in the old one, and the label that names it."""
    units = _UNITS.get(unit)
    if units is None:
        return 1.0, label
    size, name = next((each for each in units if largest >= 2 * each[0]), units[-1])
    return float(size), f"{label}, {name}"


def _reason(needs: str, why: str, runs: Sequence[Run]) -> str:
    who = "the run has no" if len(runs) == 1 else "no run has"
    return f"{who} {needs}{', ' if why else ''}{why}."


def _caption(note: str, without: Sequence[Run], needs: str) -> str:
    if not without:
        return note
    names = ", ".join(run.name for run in without)
    return f"{note} Not drawn: {names} (no {needs}).".strip()
