"""``python -m simulation.demo``: what ``make demo`` runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedge.cli import make_app, run_cli, stop_on_signals

app = make_app()


@app.command()
def demo(
    name: Annotated[str, typer.Option(help="Name of the run; empty takes the time.")] = "",
    runs: Annotated[Path, typer.Option(help="Folder that runs are left in.")] = Path("runs"),
    devices: Annotated[int, typer.Option(min=1, max=32, help="Device processes.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data and weights.")] = 0,
) -> None:
    """Run a federation of real processes on this machine, and show what each half adds."""
    stopped = stop_on_signals()
    console = Console()
    # Only now: it takes seconds, in which Ctrl-C must be heard.
    from simulation.demo.federation import Demo
    from simulation.demo.plan import DemoOptions, make_plan

    options = DemoOptions(
        name=name or time.strftime("demo-%Y%m%d-%H%M%S"),
        runs=runs,
        num_devices=devices,
        num_rounds=rounds,
        seed=seed,
    )
    problems = Demo(make_plan(options), console, stopped).run()
    for problem in problems:
        console.print(f"[red]not a success: {problem}[/red]")
    raise typer.Exit(1 if problems else 0)


if __name__ == "__main__":
    run_cli(app)
