"""The console script ``fedge-server``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fedge.cli import (
    CheckOption,
    ConfigOption,
    SetOption,
    interruptible,
    make_app,
    run_cli,
    setup_logging,
    stop_on_signals,
)
from fedge.config import load
from fedge.errors import ModelError
from server.settings import ServerConfig

app = make_app()
keys = make_app()
app.add_typer(keys, name="keys", help="Make keys.")

ExitWhenDoneOption = Annotated[
    bool,
    typer.Option("--exit-when-done", help="End after the last round instead of serving on."),
]


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    config: ConfigOption = None,
    overrides: SetOption = None,
    check: CheckOption = False,
    exit_when_done: ExitWhenDoneOption = False,
) -> None:
    """Run the rounds of a federation and publish every version to the devices.

    Started again with the same configuration it resumes where it was. Status 1: the run failed.
    """
    if context.invoked_subcommand is not None:
        return
    # Every child of ours calls exec at once; gRPC's fork handlers would only complain.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    setup_logging("fedge-server")
    settings = load(ServerConfig, config, overrides or ())
    stop = stop_on_signals()
    import torch  # takes a second

    from server.checks import load_checked_task
    from server.supervisor import Supervisor

    if check:
        task = load_checked_task(settings)
        typer.echo(f"configuration is fine: task {task.name}, run folder {settings.run_dir}")
        return
    torch.set_num_threads(1)  # exports are small, and rounds need the processors
    raise typer.Exit(Supervisor(settings, stop=stop, exit_when_done=exit_when_done).run())


@app.command("tune-report")
def tune_report(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")]) -> None:
    """Draw what the tuner of a run tried and learnt, into RUN_DIR/tuner-report."""
    setup_logging("fedge-server")
    from server.tuner.report import write_plots

    for path in write_plots(run_dir):
        typer.echo(path)


@app.command("tune-start")
def tune_start(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Compare what a run keeps from its start (tuner.start.space): model sizes, the noise's split.

    Each candidate is trained on the proxy data; sizes are converted for devices too, and judged by
    loss, latency and bytes. Nothing is changed: the last lines are for the configuration.
    """
    setup_logging("fedge-server")
    settings = load(ServerConfig, config, overrides or ())
    stop = stop_on_signals()
    from server.checks import check_names
    from server.convert import MISSING_CONVERTER, find_converter
    from server.tuner.start.price import price_of
    from server.tuner.start.rating import choose, table
    from server.tuner.start.search import StartSearch
    from server.tuner.start.space import as_config

    check_names(settings)
    search = StartSearch(settings, price_of)
    if search.has_sizes and find_converter() is None:
        raise ModelError(MISSING_CONVERTER)
    with interruptible(stop):
        rated = search.run()
    typer.echo("\n".join(table(rated)))
    chosen = choose(rated)
    why = "none is clearly better than what is configured" if chosen is rated[0] else "the best"
    typer.echo(f"\n# {why}\n{as_config(chosen.values)}")


@keys.command("release")
def make_release_key(
    path: Annotated[Path, typer.Argument(metavar="FILE")] = Path("release.key"),
) -> None:
    """Make the key that signs published versions; a key that is there stays as it is.

    FILE is for registry.release_key and never leaves the server. FILE.pub is for the devices'
    registry.release_public_key.
    """
    setup_logging("fedge-server")
    from server.release_key import load_or_create_release_key, public_path

    there = path.exists()
    load_or_create_release_key(path)
    typer.echo(f"{path} {'was there already' if there else 'is new'}: keep it on the server")
    typer.echo(f"{public_path(path)}: for registry.release_public_key of the devices")


def main() -> None:
    """Run ``fedge-server``."""
    run_cli(app)
