"""The console script ``fedge-edge``."""

from __future__ import annotations

import faulthandler
import logging
import os
from typing import Annotated

import typer

from edge_client import model_cli
from edge_client.samples_cli import samples_app
from edge_client.settings import EdgeConfig
from fedge.channels import check_socket_path
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
from fedge.service_manager import ServiceManager

app = make_app()
app.add_typer(samples_app, name="samples")
app.add_typer(model_cli.app, name="model", help="Look at model versions, pin one, go back.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    config: ConfigOption = None,
    overrides: SetOption = None,
    check: CheckOption = False,
) -> None:
    """Answer predictions on this device, and take part in private training beside it.

    Predictions go on when the server is away. State is kept in state_dir.
    """
    if context.invoked_subcommand is not None:
        return
    os.environ.update(QUIET_ENVIRONMENT)  # before Flower is imported, which reads it
    setup_logging("fedge-edge")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every poll
    settings = load(EdgeConfig, config, overrides or ())
    if check:
        typer.echo(_check(settings))
        return
    stop = stop_on_signals()
    manager = ServiceManager.from_environment()
    faulthandler.enable()  # until the daemon keeps a file for what it writes
    from edge_client.daemon import Daemon

    Daemon(settings, manager).run(stop)


@app.command("status")
def status(
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how the daemon is that serves with this configuration.

    Status 0: it answers predictions and reports no problem; 1: it does not, or one is shown.
    """
    from edge_client.status_report import show_status

    raise typer.Exit(show_status(load(EdgeConfig, config, overrides or ()), as_json=as_json))


def _check(settings: EdgeConfig) -> str:
    """Load what the daemon and its training process would load; return one line."""
    from edge_client.profile import (
        describe_without_torch,
        missing_for_training,
        named_files,
    )
    from edge_client.release_public_key import load_release_key
    from fedge.task import load_task
    from fedge.tflite.runtime import interpreter_class

    check_socket_path(settings.socket_path, "inference.socket")
    load_release_key(settings.registry.release_public_key)
    if settings.mqtt.broker.address:
        _ = settings.mqtt_topics
    interpreter_class()
    if missing_for_training():
        description = describe_without_torch(settings)
        found = named_files(settings) or (description and description.files)
        what = f"the model of {settings.task.name}" if found else "no model of its own"
        return f"configuration is fine: {what}, serving on {settings.socket_path}, not training"
    from fedge.weights import build_checked_model

    task = load_task(settings.task.name, **settings.task.options)
    build_checked_model(task)
    return f"configuration is fine: task {task.name}, serving on {settings.socket_path}"


def main() -> None:
    """Run ``fedge-edge``."""
    run_cli(app)
