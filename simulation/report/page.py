"""``report.html``: one page that needs nothing but itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from fedge.durable import write_atomically
from fedge.errors import ConfigError
from simulation.report.compare import HEADINGS, rows_of, settings_of
from simulation.report.drawing import NUM_COLORS, dashes_of
from simulation.report.plots import draw_plots
from simulation.report.runs import Run, read_runs


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write the page that compares the runs of these folders.

    Raises:
        ConfigError: a folder holds no run, or the page cannot be written; the text names it.
    """
    page = render(read_runs(folders))
    try:
        write_atomically(output, page.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {os.strerror(error.errno or 0)}") from error


def render(runs: Sequence[Run]) -> str:
    """Return the page; every text of the runs is escaped."""
    plots, left_out = draw_plots(runs)
    settings = settings_of(runs)
    here = resources.files("simulation.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # The drawings are made here and hold no text of the runs; the style sheet is ours.
    environment.filters["drawing"] = Markup
    template = environment.from_string((here / "report.html.j2").read_text())
    return template.render(
        style=Markup((here / "report.css").read_text()),
        runs=rows_of(runs, settings),
        any_group=any(len(run.seeds) > 1 for run in runs),
        headings=HEADINGS,
        plots=plots,
        left_out=left_out,
        settings=settings,
        num_colors=NUM_COLORS,
        dashes_of=dashes_of,
    )
