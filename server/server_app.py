"""The Flower ServerApp: what ``fedge-server`` starts, and what ``flwr run .`` runs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, UserConfig
from flwr.serverapp import Grid, ServerApp

from fedge.children import die_with_parent
from fedge.config import load
from fedge.errors import ConfigError, FedgeError
from fedge.flower_internals import quicken_grid
from server.federation import run_federation
from server.settings import RefineConfig, RoundsConfig, ServerConfig

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes."""
    # Flower tells only its SuperExec when the SuperLink dies: we would wait for it for ever.
    die_with_parent()
    _show_logs()
    quicken_grid()
    try:
        config = read_run_config(context.run_config, context.run_id)
        log.info("the run folder is %s", config.run_dir)
        run_federation(grid, config)
    except FedgeError as error:
        log.error("%s", error)
        raise  # Flower marks the run as failed


def read_run_config(run_config: UserConfig, run_id: int) -> ServerConfig:
    """Return the server configuration that a Flower run config names.

    Args:
        run_config: ``config``, an absolute path, or empty for the embedded digits task with
            refinement in this process; ``num-rounds``, 0 for as many as configured.
        run_id: Flower's; names the folder of a run without configuration, under ``runs``.

    Raises:
        ConfigError: a value cannot be used.
    """
    path = run_config.get("config", "")
    if not isinstance(path, str) or (path and not Path(path).is_absolute()):
        # A ServerApp runs unpacked elsewhere: a relative path would name another file.
        raise ConfigError(f"must be an absolute path or empty, got {path!r}", key="config")
    config = load(ServerConfig, Path(path)) if path else _default_config(run_id)
    num_rounds = run_config.get("num-rounds", 0)
    if not isinstance(num_rounds, int) or isinstance(num_rounds, bool) or num_rounds < 0:
        raise ConfigError(f"must be a whole number >= 0, got {num_rounds!r}", key="num-rounds")
    if num_rounds:
        config = replace(config, rounds=replace(config.rounds, num_rounds=num_rounds))
    return config


def _default_config(run_id: int) -> ServerConfig:
    """Return a short run on the embedded task, with enough time for a simulation to warm up."""
    return ServerConfig(
        run_name=f"flwr-{run_id}",
        run_dir=Path.cwd() / "runs" / f"flwr-{run_id}",
        rounds=RoundsConfig(num_rounds=3, deadline_s=300.0, poll_interval_s=0.1),
        refine=RefineConfig(trainer="in-process"),
    )


def _show_logs() -> None:
    """Show our own log lines: Flower configures only its own logger, and httpx logs each poll."""
    for name in ("aggregation", "fedge", "server"):
        logger = logging.getLogger(name)
        if not logger.hasHandlers():
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
