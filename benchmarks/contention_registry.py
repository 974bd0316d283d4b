"""A registry in a process of its own, which publishes the next 10 MB version when it is told to.

``python -m benchmarks.contention_registry FOLDER``: each line in the pipe `ORDERS` of the folder is
one order. It says its port when it is ready, and ends when the device closes the pipe.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.harness import CannotRun
from benchmarks.tasks.sized_mlp import SizedMlp
from fedge.settings import TlsConfig
from fedge.weights import layout_of
from server.convert import MISSING_CONVERTER, convert_in_subprocess, find_converter
from server.export import Exporter
from server.publisher import Publisher
from server.registry import RegistryServer
from server.release_key import load_or_create_release_key

HIDDEN = 1586
"""Units of both hidden layers: 10.5 MB of weights."""
KEY_NAME = "release.key"
ORDERS = "orders"
STEP = 1e-3
"""By which weights change from version to version, as a round changes them."""
CONVERTED = Path(__file__).resolve().parents[1] / "build" / "contention"
_NICE = 5
"""It stands for another machine, and should not take the device's place on this one."""


def main() -> None:
    """Publish version after version until the device is gone."""
    folder = Path(sys.argv[1])
    python = find_converter()
    if python is None:
        raise CannotRun(MISSING_CONVERTER)
    os.nice(_NICE)
    task = SizedMlp(HIDDEN)
    layout = layout_of(task.build_model())
    exporter = Exporter(
        task,
        CONVERTED,
        lambda out: convert_in_subprocess(
            "benchmarks.tasks.sized_mlp:SizedMlp", {"hidden": HIDDEN}, out, python
        ),
    )
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.02, layout.size).astype(np.float32)
    key = load_or_create_release_key(folder / KEY_NAME)
    publisher = Publisher(
        folder / "registry", key, run_name="contention", task=task.name, keep_versions=2
    )
    registry = RegistryServer(publisher, "127.0.0.1:0", TlsConfig())
    exporter.export(layout, weights)  # converted now, if it was not before
    print(registry.start(), flush=True)
    with (folder / ORDERS).open() as orders:
        for number, _ in enumerate(orders):
            publisher.publish(number, exporter.export(layout, weights))
            weights = weights + rng.normal(0, STEP, layout.size).astype(np.float32)
    registry.stop()


if __name__ == "__main__":
    main()
