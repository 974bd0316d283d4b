"""Optuna's own plots of a run's studies, as files in the run folder."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedge.errors import ConfigError
from server.tuner.study import CANDIDATES, DATABASE, open_study

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

FOLDER = "tuner-report"
PLOTS = ("optimization_history", "slice", "parallel_coordinate", "param_importances")
OF_CANDIDATES = "intermediate_values"
Save = Callable[[Any, Path], Path]


def write_plots(run_dir: Path) -> list[Path]:
    """Draw every study of a run into ``tuner-report``; returns the files.

    Raises:
        ConfigError: there is no study, or nothing to draw with.
    """
    import optuna

    path = run_dir / DATABASE
    if not path.is_file():
        raise ConfigError(f"{path} is not there: no tuner ran in this folder")
    backend, save = _backend()
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    written = []
    for name in optuna.study.get_all_study_names(storage=f"sqlite:///{path}"):
        kind = name.rpartition("/")[2]
        plots = [*PLOTS, OF_CANDIDATES] if kind.startswith(CANDIDATES) else PLOTS
        for plot in plots:
            stem = re.sub(r"[^\w.-]", "-", f"{name}-{plot}")
            found = _draw(backend, plot, open_study(path, name))
            if found is not None:
                written.append(save(found, folder / stem))
    return written


def _backend() -> tuple[Any, Save]:
    """Return Optuna's plots by plotly, or by matplotlib where that is not there.

    Raises:
        ConfigError: neither is installed.
    """
    from optuna import visualization

    if visualization.is_available():
        return visualization, _save_page
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("plots need plotly or matplotlib: install one of them") from None
    matplotlib.use("Agg")
    return visualization.matplotlib, _save_picture


def _draw(backend: Any, plot: str, study: optuna.Study) -> Any:
    """Return a drawing; None where the study has too few trials for it."""
    if not any(trial.state.is_finished() and trial.value is not None for trial in study.trials):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's plots call themselves experimental
        try:
            return getattr(backend, f"plot_{plot}")(study)
        except (ValueError, RuntimeError, ImportError) as error:
            log.info("%s of %s is left out: %s", plot, study.study_name, error)
            return None


def _save_page(figure: Any, stem: Path) -> Path:
    path = stem.with_name(stem.name + ".html")
    figure.write_html(path)
    return path


def _save_picture(axes: Any, stem: Path) -> Path:
    from matplotlib import pyplot

    figure = getattr(axes, "figure", None) or axes.flat[0].figure
    path = stem.with_name(stem.name + ".png")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path
