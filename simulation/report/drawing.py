"""The look of the report's figures: SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from simulation.report.series import Curve

SIZE_INCHES = (4.7, 2.9)
NUM_COLORS = 10
DASHES = ("", "6 3", "2 2", "8 3 2 3")
"""SVG dash patterns; runs beyond the number of colours take the next one."""

# Matplotlib knows no CSS variables: it draws with these colours, which then become variables,
# so that one drawing serves a light and a dark page.
_INK, _GRID = "#0000e0", "#0000e1"
_SERIES = tuple(f"#0000{0xA0 + index:02x}" for index in range(NUM_COLORS))
_VARIABLES = {
    _INK: "var(--ink-soft)",
    _GRID: "var(--line)",
    **{color: f"var(--c{index})" for index, color in enumerate(_SERIES)},
}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


class Drawing:
    """One pair of axes.

    Args:
        key: begins the ids in the SVG, so that those of two drawings never meet.
        units: of the x and y axis: ``round`` and ``count`` are whole numbers, others are not.
    """

    def __init__(self, key: str, x_label: str, y_label: str, units: tuple[str, str]) -> None:
        self._key = key
        self._style = {**_STYLE, "svg.hashsalt": key}
        with mpl.rc_context(self._style):
            figure = Figure(figsize=SIZE_INCHES, layout="constrained")
            self._axes: Any = figure.add_subplot()
            self._axes.set(xlabel=x_label, ylabel=y_label)
            self._axes.margins(x=0.02)
            for axis, unit in zip((self._axes.xaxis, self._axes.yaxis), units, strict=True):
                _format(axis, unit)
        self._figure = figure

    def curve(self, index: int, curve: Curve, *, dashes: str | None = None) -> None:
        """Draw the curve of run number ``index``, with the band over its seeds."""
        pattern = dashes_of(index) if dashes is None else dashes
        color = _SERIES[index % NUM_COLORS]
        marker = "o" if curve.x.size <= 12 else None
        self._axes.plot(
            curve.x,
            curve.mean,
            color=color,
            linestyle=_linestyle(pattern),
            marker=marker,
            markersize=3.5,
        )
        if curve.num_seeds > 1:
            self._axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.16, lw=0)

    def stack(
        self, rounds: NDArray[np.float64], counts: Sequence[tuple[int, NDArray[np.float64]]]
    ) -> None:
        """Draw counts upon each other, one column a round.

        Args:
            rounds: [R] ascending.
            counts: number of the color and counts [R], from the bottom up.
        """
        edges = np.append(rounds - 0.5, rounds[-1] + 0.5)
        below = np.zeros(len(edges))
        for color, values in counts:
            above = below + np.append(values, values[-1])
            self._axes.fill_between(
                edges, below, above, step="post", color=_SERIES[color % NUM_COLORS], lw=0
            )
            below = above
        self.from_zero()

    def from_zero(self) -> None:
        """Let the y axis begin at 0, and end a little above the largest number."""
        self._axes.set_ylim(0, 1.06 * self._axes.dataLim.y1 or 1)

    def svg(self) -> str:
        """Return the drawing as an ``svg`` element that refers to nothing outside it."""
        buffer = io.StringIO()
        with mpl.rc_context(self._style):
            self._figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self._key}-", text)
        # Its own size in points goes: the page gives it a width, the viewBox the rest.
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
        return _with_variables(text, _VARIABLES)


def dashes_of(index: int) -> str:
    """Return the SVG dash pattern of run number ``index``."""
    return DASHES[index // NUM_COLORS % len(DASHES)]


def _with_variables(text: str, variables: Mapping[str, str]) -> str:
    for color, variable in variables.items():
        text = text.replace(color, variable)
    return text


def _linestyle(pattern: str) -> Any:
    return (0, tuple(float(part) / 1.6 for part in pattern.split())) if pattern else "solid"


def _format(axis: Any, unit: str) -> None:
    if unit == "round":
        axis.set_major_locator(MaxNLocator(integer=True))
    elif unit == "count":
        axis.set_major_formatter(EngFormatter(sep=""))
