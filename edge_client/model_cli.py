"""``fedge-edge model``: look at the versions on this device, pin one, or go back.

It works on the state folder, beside a running daemon or without one. A daemon sees the choice
within a second.
"""

from __future__ import annotations

from typing import Annotated

import typer

from edge_client.settings import EdgeConfig
from fedge.cli import ConfigOption, SetOption, make_app, setup_logging
from fedge.config import load
from fedge.errors import ModelError

app = make_app()


@app.command("list")
def list_versions(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Show the versions on this device, newest first; * is the one that serves."""
    from edge_client.model_versions import describe, open_store

    for line in describe(open_store(_settings(config, overrides))):
        typer.echo(line)


@app.command()
def pin(
    version: Annotated[
        str | None, typer.Argument(help="Number, round, or the beginning of its id.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Take new versions again.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Serve one version until `pin --off`, whatever is published; default: the one that serves."""
    from edge_client.model_versions import find, open_store

    if off and version:
        raise ModelError("give a version to pin, or --off")
    store = open_store(_settings(config, overrides))
    if off:
        store.choices.pin("")
        typer.echo("no version is pinned: the next one published is taken")
        return
    chosen = find(store, version)
    store.choices.pin(chosen.id)
    typer.echo(f"pinned {chosen.id[:12]}, round {chosen.manifest.round}")


@app.command()
def rollback(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Leave the version that serves for the one before it; it does not come back."""
    from edge_client.model_versions import open_store, roll_back

    left, serves = roll_back(open_store(_settings(config, overrides)))
    typer.echo(
        f"left {left.id[:12]}, round {left.manifest.round}, for {serves.id[:12]}, "
        f"round {serves.manifest.round}"
    )


def _settings(config: ConfigOption, overrides: SetOption) -> EdgeConfig:
    setup_logging("fedge-edge")
    return load(EdgeConfig, config, overrides or ())
