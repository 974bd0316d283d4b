"""The console script ``fedge-edge``."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import typer

from edge_client.settings import EdgeConfig
from fedge.children import QUIET_ENVIRONMENT
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

app = make_app()


@app.command()
def serve(
    config: ConfigOption = None,
    overrides: SetOption = None,
    check: CheckOption = False,
) -> None:
    """Answer predictions on this device, and take part in private training beside it.

    Predictions go on when the server is away. State is kept in state_dir.
    """
    os.environ.update(QUIET_ENVIRONMENT)  # before Flower is imported, which reads it
    setup_logging("fedge-edge")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every poll
    settings = load(EdgeConfig, config, overrides or ())
    if check:
        typer.echo(_check(settings))
        return
    stop = stop_on_signals()
    from edge_client.daemon import Daemon

    Daemon(settings).run(stop)


def _check(settings: EdgeConfig) -> str:
    """Load what the daemon and its training process would load; return one line."""
    from edge_client.daemon import load_release_key
    from fedge.task import load_task
    from fedge.tflite.runtime import interpreter_class
    from fedge.weights import build_checked_model

    load_release_key(settings.registry.release_public_key)
    if settings.mqtt.broker.address:
        _ = settings.mqtt_topics
    task = load_task(settings.task.name, **settings.task.options)
    build_checked_model(task)
    interpreter_class()
    socket: Path = settings.socket_path
    return f"configuration is fine: task {task.name}, serving on {socket}"


def main() -> None:
    """Run ``fedge-edge``."""
    run_cli(app)
