"""A machine's state from its vibration: windows of three accelerations, m/s².

Readings come from a generator, so nothing is downloaded. Each machine turns at a speed of its own
and its sensor is mounted at an angle of its own: clients differ as they do in a hall. Torch is
imported where it is needed: a device that only predicts has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedge.errors import TaskError
from fedge.rng import stream
from fedge.task import CloudData, EdgeFiles, Examples, SampleStore, Split
from fedge.windows import Readings, WindowSpec, cut_windows

if TYPE_CHECKING:
    from torch import Tensor, nn

STATES = ("off", "turning", "unbalanced", "worn bearing")
RATE_HZ = 100.0
GRAVITY = 9.81
WINDOWS = WindowSpec(
    size=64,
    hop=32,
    # What an accelerometer lying flat shows, and a range that its data sheet gives.
    mean=(0.0, 0.0, GRAVITY),
    scale=(4.0, 4.0, 4.0),
    max_gap_s=2.5 / RATE_HZ,
)
_DWELL_READINGS = 320  # a machine stays that long in one state
_PROXY_MACHINES, _GATE_MACHINES, _TEST_MACHINES = 6, 8, 16
_EDGE_FOLDER = Path(__file__).parent / "sensor_edge"


@dataclass(frozen=True)
class Sensor:
    """Which of four states a machine is in; the seed draws machines and what they do.

    Attributes:
        num_stretches: stretches of 3.2 s, each in one state, that one machine shows.
    """

    seed: int = 0
    num_stretches: int = 12

    name = "sensor"
    input_shape = (WINDOWS.size, WINDOWS.num_channels)

    def __post_init__(self) -> None:
        """Refuse a seed and stretches that cannot be drawn."""
        if not isinstance(self.seed, int) or self.seed < 0:
            raise TaskError(f"sensor: seed must be a whole number >= 0, got {self.seed!r}")
        if self.num_stretches < 1:
            raise TaskError(f"sensor: num_stretches must be >= 1, got {self.num_stretches}")

    def window_spec(self) -> WindowSpec:
        """Return how readings become inputs, on a device and here."""
        return WINDOWS

    def build_model(self) -> nn.Module:
        """Return a small 1-D CNN; inputs ``[B, 64, 3]``, logits ``[B, 4]``."""
        from fedge.tasks.sensor_model import SensorNet

        return SensorNet(WINDOWS.num_channels, len(STATES))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one cross-entropy an example, ``[B]``."""
        from torch.nn import functional

        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy of a batch."""
        return {"accuracy": (outputs.argmax(dim=1) == targets).double().mean().item()}

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Return one machine's windows.

        Raises:
            TaskError: there is no such client.
        """
        if not 0 <= client < num_clients:
            raise TaskError(f"sensor: client {client} is not one of 0..{num_clients - 1}")
        return self._windows("clients", client)

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        """Return the device's own labelled windows.

        Raises:
            TaskError: the stored samples are not windows with a label of 0 to 3.
        """
        stored = store.labelled(split)
        if len(stored) == 0:
            return Examples(np.zeros((0, *self.input_shape), np.float32), np.zeros(0, np.int64))
        labels = np.asarray(stored.targets).reshape(len(stored), -1)
        if stored.inputs.shape[1:] != self.input_shape or labels.shape[1] != 1:
            raise TaskError(
                f"sensor: a stored sample has shape {list(stored.inputs.shape[1:])} and "
                f"{labels.shape[1]} labels; expected {list(self.input_shape)} and 1"
            )
        targets = labels[:, 0].astype(np.int64)
        if (targets != labels[:, 0]).any() or targets.min() < 0 or targets.max() >= len(STATES):
            raise TaskError(f"sensor: labels must be whole numbers from 0 to {len(STATES) - 1}")
        return Examples(np.asarray(stored.inputs, np.float32), targets)

    def cloud_data(self) -> CloudData:
        """Return windows of machines that no client has."""
        return CloudData(
            proxy=self._machines("proxy", _PROXY_MACHINES),
            gate=self._machines("gate", _GATE_MACHINES),
            test=self._machines("test", _TEST_MACHINES),
        )

    def edge_files(self) -> EdgeFiles | None:
        """Return the shipped template and plan, or None where they were left out."""
        files = EdgeFiles(_EDGE_FOLDER / "template.tflite", _EDGE_FOLDER / "plan.json")
        return files if files.template.is_file() and files.plan.is_file() else None

    def record(self, purpose: str, machine: int) -> tuple[Readings, npt.NDArray[np.int64]]:
        """Return what a machine's sensor shows, and the machine's state at each reading.

        Args:
            purpose: ``clients``, or a share of the cloud's.
            machine: its number there.
        """
        rng = stream(self.seed, f"sensor-{purpose}", client=machine)
        states = _draw_states(rng, self.num_stretches)
        values = _vibrate(rng, states) @ _mounting(rng).T
        times_s = np.arange(len(states)) / RATE_HZ
        return Readings(values, np.arange(len(states)), times_s), states

    def _machines(self, purpose: str, number: int) -> Examples:
        parts = [self._windows(purpose, machine) for machine in range(number)]
        inputs: list[npt.NDArray[Any]] = [part.inputs for part in parts]
        return Examples(np.concatenate(inputs), np.concatenate([part.targets for part in parts]))

    def _windows(self, purpose: str, machine: int) -> Examples:
        """Return a machine's windows, each with the state at its last reading."""
        readings, states = self.record(purpose, machine)
        cut = cut_windows(readings, WINDOWS)
        return Examples(cut.inputs, states[cut.last])


def _draw_states(rng: np.random.Generator, num_stretches: int) -> npt.NDArray[np.int64]:
    """Return the state at each reading; each machine is in some states more than in others."""
    shares = rng.dirichlet(np.ones(len(STATES)))
    return np.repeat(rng.choice(len(STATES), num_stretches, p=shares), _DWELL_READINGS)


def _vibrate(rng: np.random.Generator, states: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return accelerations ``[N, 3]`` in the machine's own axes, gravity along the third."""
    number = len(states)
    speed_hz = rng.uniform(8, 14) * (1 + 0.02 * np.cumsum(rng.normal(size=number)) / number**0.5)
    angle = 2 * np.pi * np.cumsum(speed_hz) / RATE_HZ
    on = states > 0
    radial = np.where(on, 0.6, 0.0) + np.where(states == 2, rng.uniform(1.2, 2.0), 0.0)
    # A worn bearing hits about three and a half times a turn, and each hit rings shortly.
    hits = np.maximum(np.cos(3.57 * angle), 0.0) ** 8 * (states == 3) * rng.uniform(2.5, 4.0)
    ringing = hits * np.cos(2 * np.pi * 37.0 * np.arange(number) / RATE_HZ)
    values = np.stack(
        [
            radial * np.cos(angle) + ringing,
            radial * np.sin(angle) + 0.5 * ringing,
            GRAVITY + 0.3 * on * np.cos(2 * angle),
        ],
        axis=1,
    )
    return values + rng.normal(scale=np.where(on, 0.5, 0.05)[:, None], size=(number, 3))


def _mounting(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a rotation ``[3, 3]`` of up to 0.4 rad about a random axis (Rodrigues' formula)."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = rng.uniform(0, 0.4)
    rotation: npt.NDArray[np.float64] = (
        np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * cross @ cross
    )
    return rotation
