"""The console script ``fedge-trainer``; under ``torchrun`` one of its processes."""

from __future__ import annotations

import typer

from fedge.cli import (
    CheckOption,
    ConfigOption,
    SetOption,
    make_app,
    run_cli,
    setup_logging,
    stop_on_signals,
)
from fedge.config import load
from fedge.task import load_task
from server.trainer.settings import TrainerConfig

app = make_app()


@app.command()
def serve(
    config: ConfigOption = None, overrides: SetOption = None, check: CheckOption = False
) -> None:
    """Refine the global model on the cloud's proxy data, whenever the server asks.

    For several processes: torchrun --nproc-per-node 2 -m server.trainer --config FILE
    """
    setup_logging("fedge-trainer")
    settings = load(TrainerConfig, config, overrides or ())
    if check:
        from fedge.weights import build_checked_model

        task = load_task(settings.task.name, **settings.task.options)
        build_checked_model(task)
        typer.echo(f"configuration is fine: task {task.name}, address {settings.address}")
        return
    stop = stop_on_signals()
    from server.trainer.serve import run_trainer  # imports torch, which takes a second

    run_trainer(settings, stop)


def main() -> None:
    """Run ``fedge-trainer``."""
    run_cli(app)
