"""A finished demo's figures, written down by hand."""

from typing import Any

from simulation.demo.devices import DeviceReport
from simulation.demo.load import LoadSnapshot

SERVER_VERSION = "c" * 64
LOAD = LoadSnapshot(tuple(float(ms) for ms in range(1, 101)), {})


def metrics_of(
    round: int, accuracy: float, refinement: str, *, seconds: float, epsilon: float = 0.0
) -> dict[str, Any]:
    """Return one line of ``metrics.jsonl``, as far as the demo reads it."""
    return {
        "round": round,
        "num_accepted": 2 if round else 0,
        "round_s": seconds,
        "accuracy_test": accuracy,
        "accuracy_test_aggregate": accuracy - 0.05 if round else None,
        "refinement": refinement,
        "epsilon": {"17": epsilon, "18": epsilon / 2} if round else {},
        "model_digest": str(round) * 64 if round < 3 else SERVER_VERSION,
    }


ROUNDS = [
    metrics_of(0, 0.125, "off", seconds=0.0),
    metrics_of(1, 0.5, "accepted", seconds=2.0, epsilon=3.0),
    metrics_of(2, 0.625, "rejected", seconds=5.0, epsilon=5.0),
    metrics_of(3, 0.875, "failed", seconds=3.0, epsilon=7.0),
]
DEVICES = [
    DeviceReport("device-0", SERVER_VERSION, 7.0, {1: 0.5, 2: 4.0, 3: 1.0}),
    DeviceReport("device-1", SERVER_VERSION, 3.5, {1: 1.5, 3: 0.5}),
]
