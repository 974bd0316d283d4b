"""The connection to a Ray cluster, and Ray's errors as ours."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from typing import Any
from urllib.parse import urlsplit

import grpc

from fedge.errors import ConfigError
from simulation.engine.cores import num_cores

log = logging.getLogger(__name__)

LOCAL = "local"
_AUTO = "auto"
_KEY = "engine.ray"
_FORMS = 'give "local", "auto", "host:port" or "ray://host:port"'
_PROBE_S = 5.0


class RayCluster:
    """A cluster that was joined, or one of this machine alone that was started for us.

    Where this process uses Ray already, that connection is used and left as it is.

    Args:
        address: ``local`` starts one; ``auto`` finds the one that this machine is part of;
            ``host:port`` is the head of one that this machine is part of; ``ray://host:port`` is
            one elsewhere.

    Attributes:
        ray: Ray's own module.

    Raises:
        ConfigError: Ray is not installed, or nothing answers at the address.
    """

    def __init__(self, address: str) -> None:
        self.ray = _import_ray()
        self._ours = not self.ray.is_initialized()
        if self._ours:
            _connect(self.ray, address)
        else:
            log.info("this process is connected to a Ray cluster already, which is used")

    def num_places(self, cpus: float, gpus: float) -> int:
        """Return how many actors of a size all nodes together have room for when they are empty.

        Raises:
            ConfigError: there is no room for a single one.
        """
        if cpus <= 0 and gpus <= 0:
            raise ConfigError(
                "one of ray_cpus and ray_gpus must be more than 0, found 0 for both",
                key="engine.ray_cpus",
            )
        asked = [(name, size) for name, size in (("CPU", cpus), ("GPU", gpus)) if size > 0]
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        num_places = sum(
            min(int(resources.get(name, 0.0) / size + 1e-9) for name, size in asked)
            for resources in nodes
        )
        if num_places < 1:
            raise ConfigError(
                f"expected a node with {cpus:g} CPUs and {gpus:g} GPUs, and none of the cluster's "
                f"{len(nodes)} has them; lower engine.ray_cpus or engine.ray_gpus",
                key=_KEY,
            )
        return num_places

    def close(self) -> None:
        """Leave the cluster; one that was started for us ends. Twice is fine."""
        if self._ours:
            self._ours = False
            self.ray.shutdown()


def _import_ray() -> Any:
    # Ray reads it when a cluster starts.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f'Ray is not installed ({error}); pip install "fedge[simulate]"', key=_KEY
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"num_cpus": num_cores(), "include_dashboard": False}
    elif address == _AUTO:
        address = os.environ.get("RAY_ADDRESS", _AUTO)
    if address not in (LOCAL, _AUTO):
        _probe(address)
    try:
        with warnings.catch_warnings():
            # Of devices that later versions will show to actors without a GPU.
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(address=address, **options)
    except Exception as error:  # boundary: Ray raises errors of many kinds, few of them its own
        raise ConfigError(
            f"no Ray cluster can be joined at {address!r}: {error}; {_FORMS}, where the last is "
            "for a cluster that this machine is not part of",
            key=_KEY,
        ) from error


def _probe(address: str) -> None:
    """Refuse an address where nothing answers; Ray itself would try for minutes."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in ("", "ray"):
        raise ConfigError(f"{address!r} is not an address of a cluster; {_FORMS}", key=_KEY)
    try:
        socket.create_connection((host, port), _PROBE_S).close()
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            with grpc.insecure_channel(f"{host}:{port}") as channel:
                grpc.channel_ready_future(channel).result(_PROBE_S)
    except (OSError, grpc.FutureTimeoutError) as error:
        why = error if isinstance(error, OSError) else "what listens there is not Ray"
        raise ConfigError(
            f"no Ray cluster answers at {address!r}: {why}; start one there with "
            f'"ray start --head", or {_FORMS}',
            key=_KEY,
        ) from error
