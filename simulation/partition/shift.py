"""Feature shift: IID examples, which every client sees in a way of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError
from fedge.naming import Registry
from fedge.rng import stream
from fedge.task import Examples
from simulation.partition.division import PARTITIONERS, Division
from simulation.partition.orders import Iid
from simulation.partition.pool import Pool
from simulation.partition.settings import DataConfig

Rows = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Viewer:
    """Who looks, and how strongly they see otherwise.

    Attributes:
        rng: the same at every look of the same client.
        place: of the client among all, in (0, 1]; the last is 1.
    """

    rng: np.random.Generator
    strength: float
    place: float


SHIFTS: Registry[Callable[[Rows, Viewer], Rows]] = Registry("shift")


@SHIFTS.register("affine")
def affine(rows: Rows, viewer: Viewer) -> Rows:
    """Scale each feature by exp(s u) and add s v; u and v are normal: another sensor."""
    scale, offset = viewer.rng.standard_normal((2, rows.shape[1]))
    shifted: Rows = rows * np.exp(viewer.strength * scale) + viewer.strength * offset
    return shifted


@SHIFTS.register("rotation")
def rotation(rows: Rows, viewer: Viewer) -> Rows:
    """Rotate random pairs of features by s z radians, z normal; lengths stay as they are."""
    order = viewer.rng.permutation(rows.shape[1])
    half = len(order) // 2
    left, right = order[:half], order[half : 2 * half]
    angles = viewer.strength * viewer.rng.standard_normal(half)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = rows.astype(np.float64)
    turned[:, left] = rows[:, left] * cos - rows[:, right] * sin
    turned[:, right] = rows[:, left] * sin + rows[:, right] * cos
    return turned


@SHIFTS.register("noise")
def noise(rows: Rows, viewer: Viewer) -> Rows:
    """Add normal noise of variance s times the client's place: later clients are noisier.

    Source: Li et al., Federated Learning on Non-IID Data Silos, ICDE 2022, noise-based skew.
    """
    deviation = np.sqrt(viewer.strength * viewer.place)
    noisy: Rows = rows + deviation * viewer.rng.standard_normal(rows.shape)
    return noisy


@PARTITIONERS.register("feature-shift")
class FeatureShift:
    """IID examples whose inputs each client sees shifted; its own shift is always the same."""

    def __init__(self, config: DataConfig) -> None:
        self._iid = Iid(config)
        self._shift = SHIFTS[config.shift]
        self._strength = config.shift_strength

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return an even deal and how each client sees it."""
        inputs = pool.examples.inputs
        if inputs.dtype.kind != "f":
            raise ConfigError(
                f"feature-shift needs inputs that are real numbers; those of {pool.where} are "
                f"{inputs.dtype}",
                key="data.partitioner",
            )

        def view(client: int, examples: Examples) -> Examples:
            rng = stream(seed, "feature-shift", client=client)
            viewer = Viewer(rng, self._strength, (client + 1) / num_clients)
            rows = examples.inputs.reshape(len(examples), -1)
            shifted = self._shift(rows, viewer).astype(inputs.dtype, copy=False)
            return Examples(shifted.reshape(examples.inputs.shape), examples.targets)

        return replace(self._iid.divide(pool, num_clients, seed), view=view)
