"""What Flower is given to run: a folder with one pyproject.toml that names the installed code.

The bundle carries no code. Flower looks for `server.server_app` in the unpacked bundle, does not
find it, and imports the installed package: the ServerApp runs exactly the code of this process,
from a checkout as from a wheel.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w

from fedge.config import to_tree
from fedge.durable import write_atomically
from fedge.errors import ConfigError
from server.settings import ServerConfig

SERVER_APP = "server.server_app:app"
CLIENT_APP = "edge_client.client_app:app"


@dataclass(frozen=True)
class AppBundle:
    """Files for ``flwr run``.

    Attributes:
        folder: of the app.
        run_config: TOML file of run config overrides.
    """

    folder: Path
    run_config: Path


def write_bundle(config: ServerConfig, folder: Path) -> AppBundle:
    """Write the app's folder, the resolved configuration and the run config into a folder.

    Args:
        config: its paths must be absolute.
        folder: made if missing.

    Raises:
        ConfigError: a file cannot be written.
    """
    bundle = AppBundle(folder / "app", folder / "run.toml")
    server_config = folder / "server.toml"
    try:
        bundle.folder.mkdir(parents=True, exist_ok=True)
        _write(bundle.folder / "pyproject.toml", _pyproject())
        _write(server_config, serverapp_tree(config))
        _write(bundle.run_config, {"config": str(server_config)})
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}", key="run_dir") from (
            error
        )
    return bundle


def serverapp_tree(config: ServerConfig) -> dict[str, Any]:
    """Return the configuration as the ServerApp gets it: it never learns of the release key."""
    tree = to_tree(config)
    tree["registry"].pop("release_key", None)
    return tree


def _pyproject() -> dict[str, Any]:
    app = {
        "publisher": "fedge",
        "components": {"serverapp": SERVER_APP, "clientapp": CLIENT_APP},
        # Flower refuses overrides of what is not declared.
        "config": {"config": "", "num-rounds": 0},
    }
    project = {
        "name": "fedge",
        "version": metadata.version("fedge"),
        "description": "Runs the installed fedge server",
        "license": "Apache-2.0",
    }
    return {"project": project, "tool": {"flwr": {"app": app}}}


def _write(path: Path, tree: dict[str, Any]) -> None:
    write_atomically(path, tomli_w.dumps(tree).encode())
