"""``fedge-simulate``: a whole federation on one machine, its seeds and sweeps, and its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.console import Console
from rich.table import Table

from fedge.cli import (
    EXIT_ERROR,
    CheckOption,
    ConfigOption,
    SetOption,
    make_app,
    run_cli,
    setup_logging,
)
from fedge.config import load
from simulation.settings import SimulateConfig

if TYPE_CHECKING:
    from fedge.task import Task
    from simulation.runner import SimulationResult
    from simulation.sweep import Combination

PROGRAM = "fedge-simulate"

SeedsOption = Annotated[
    int | None,
    typer.Option("--seeds", metavar="N", help="Run with N seeds, from server.seed on."),
]
SweepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep", metavar="KEY=A,B,C", help="Run with each value; repeated, with each combination."
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Train on this Ray cluster (sets engine.ray)."),
]
ReportOption = Annotated[
    bool, typer.Option("--report", help="Write report.html into server.run_dir at the end.")
]

app = make_app()


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    config: ConfigOption = None,
    overrides: SetOption = None,
    check: CheckOption = False,
    seeds: SeedsOption = None,
    sweep: SweepOption = None,
    ray: RayOption = None,
    with_report: ReportOption = False,
) -> None:
    """Simulate a federation through the server's own code; resumes a run that was cut off.

    With --seeds or --sweep every combination is a run in a folder of its own below
    server.run_dir; those that are finished are not run again.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    setup_logging(PROGRAM)
    texts = [*(overrides or ()), *([f"engine.ray={json.dumps(ray)}"] if ray is not None else ())]
    if seeds is None and not sweep:
        _run_one(load(SimulateConfig, config, texts), check=check, with_report=with_report)
        return
    # Only now: pyarrow takes half a second to import, --help should not.
    from simulation.sweep import combinations

    def load_with(extra: Sequence[str]) -> SimulateConfig:
        return load(SimulateConfig, config, [*texts, *extra])

    root = load_with(()).server.run_dir
    found = combinations(load_with, sweep or (), 1 if seeds is None else seeds)
    _run_all(found, root, check=check, with_report=with_report)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", hidden=True)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", metavar="FILE", help="Page to write (report.html).", show_default=False
        ),
    ] = Path("report.html"),
) -> None:
    """Compare any number of runs in one page that needs nothing but itself.

    RUN_DIR is the folder of a run, one that holds seed-0, seed-1 and so on (drawn as their mean),
    or that of a sweep.
    """
    setup_logging(PROGRAM)
    from simulation.report.page import write_report

    write_report(folders, output)
    _say(f"Report: {output}")


@app.command("what-if")
def what_if(
    config: ConfigOption = None,
    overrides: SetOption = None,
    deadlines: Annotated[
        str, typer.Option("--deadlines", metavar="S,S,...", help="Seconds that a round may take.")
    ] = "60,120,300,600",
    over_selections: Annotated[
        str, typer.Option("--over-selections", metavar="F,F,...", help="Times as many are asked.")
    ] = "1.0,1.1,1.3,1.5",
) -> None:
    """Tell what deadlines and over-selections would do on these devices; nothing is trained."""
    setup_logging(PROGRAM)
    from simulation.planning_table import numbers_of, planning_table
    from simulation.round_planning import plan_rounds
    from simulation.runner import make_task

    settings = load(SimulateConfig, config, overrides or ())
    choices = numbers_of(deadlines, "--deadlines"), numbers_of(over_selections, "--over-selections")
    Console().print(planning_table(plan_rounds(settings, make_task(settings), *choices)))


def _refuse_options(context: typer.Context) -> None:
    """Refuse options of a run before the name of a command that would ignore them."""
    for name in context.params:
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{context.invoked_subcommand} takes no options of a run")


def _run_one(settings: SimulateConfig, *, check: bool, with_report: bool) -> None:
    task = _checked_task(settings, with_data=check)
    if check:
        _say(f"the configuration is good: task {task.name}")
        return
    result = _simulate(settings, task)
    Console().print(_rounds_table(result))
    _say(f"Figures: {settings.server.run_dir / 'metrics.jsonl'}")
    if with_report:
        _write_report([settings.server.run_dir], settings.server.run_dir)


def _run_all(found: Sequence[Combination], root: Path, *, check: bool, with_report: bool) -> None:
    from simulation.sweep import RESULTS, run_sweep, summary_table

    # All before the first: a wrong name in the last should not be found out after hours.
    firsts = {each.name: each for each in reversed(found)}
    names = {_checked_task(each.config, with_data=check).name for each in firsts.values()}
    if check:
        _say(f"the configuration is good: task {', '.join(sorted(names))}, {len(found)} runs")
        return
    results = root / RESULTS
    outcomes = run_sweep(found, lambda each: _simulate(each.config, None, each.title), results)
    Console().print(summary_table(outcomes))
    if any(outcome.rounds for outcome in outcomes):
        _say(f"Figures: {results}")
        if with_report:
            begun = [root / each.combination.name for each in outcomes if each.rounds]
            _write_report(list(dict.fromkeys(begun)), root)
    num_failed = sum(bool(outcome.error) for outcome in outcomes)
    if num_failed:
        typer.echo(f"error: {num_failed} of {len(outcomes)} runs failed, see above", err=True)
        raise typer.Exit(EXIT_ERROR)


def _checked_task(settings: SimulateConfig, *, with_data: bool) -> Task:
    """Return the task of a configuration in which every name is known.

    Args:
        with_data: read and divide the clients' data too, as a run does when it begins.
    """
    # Only now: torch and Flower take seconds to import, --help should not.
    from fedge.task import load_task
    from server.checks import check_model, check_names
    from simulation.attacks.methods import check_attack
    from simulation.engine.checks import check_engine
    from simulation.runner import make_task

    check_names(settings.server, "server.")
    check_attack(settings.attack)
    check_engine(settings.engine)
    task = load_task(settings.server.task.name, **settings.server.task.options)
    check_model(settings.server, task)
    if with_data:
        make_task(settings, task)
    return task


def _simulate(settings: SimulateConfig, task: Task | None, title: str = "") -> SimulationResult:
    from simulation.progress import RoundProgress
    from simulation.report.table import TableRun, write_table
    from simulation.runner import simulate

    with RoundProgress(settings.server.rounds.num_rounds, title=title).running() as progress:
        result = simulate(settings, task=task, on_round=progress.on_round)
    rows = TableRun(settings.server.run_name, result.rounds, settings.server.seed)
    write_table(result.run_dir / "metrics.parquet", [rows])
    return result


def _write_report(folders: Sequence[Path], root: Path) -> None:
    from simulation.report.page import write_report

    write_report(folders, root / "report.html")
    _say(f"Report: {root / 'report.html'}")


def _rounds_table(result: SimulationResult) -> Table:
    table = Table(title=f"{len(result.rounds) - 1} rounds")
    for name in ("round", "clients", "accuracy", "loss", "refinement", "largest ε"):
        table.add_column(name, justify="right")
    for metrics in result.rounds:
        table.add_row(
            str(metrics["round"]),
            f"{metrics['num_accepted']}/{metrics['num_selected']}",
            _four_digits(metrics.get("accuracy_test")),
            _four_digits(metrics.get("loss_test")),
            str(metrics["refinement"]),
            f"{max(metrics['epsilon'].values(), default=0.0):.3f}",
        )
    return table


def _four_digits(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}"


def _say(text: str) -> None:
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Run the console script."""
    run_cli(app)
