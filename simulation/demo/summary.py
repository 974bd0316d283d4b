"""``summary.json``: what a demo run came to, from what its processes left behind."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedge.privacy.statement import epsilon_covers
from simulation.demo.devices import DeviceReport
from simulation.demo.load import LoadSnapshot


@dataclass(frozen=True)
class Baselines:
    """What each half reaches alone, with the same seeds, budget and test set."""

    accuracy_fedavg_only: float
    accuracy_cloud_only: float


def summarize(
    rounds: Sequence[Mapping[str, Any]],
    devices: Sequence[DeviceReport],
    load: LoadSnapshot,
    baselines: Baselines,
    *,
    delta: float,
) -> dict[str, Any]:
    """Return the summary of one demo.

    Args:
        rounds: lines of the server's ``metrics.jsonl``, round 0 (initial weights) first.
    """
    first, last = rounds[0], rounds[-1]
    outcomes = [metrics["refinement"] for metrics in rounds]
    return {
        "rounds": last["round"],
        "accuracy_initial": first["accuracy_test"],
        "accuracy_final": last["accuracy_test"],
        "accuracy_fedavg_only": baselines.accuracy_fedavg_only,
        "accuracy_cloud_only": baselines.accuracy_cloud_only,
        "refinements_accepted": outcomes.count("accepted"),
        "refinements_rejected": outcomes.count("rejected"),
        "refinements_failed": outcomes.count("failed"),
        "devices": len(devices),
        "epsilon": {device.name: device.epsilon for device in devices},
        "delta": delta,
        "epsilon_covers": epsilon_covers(),
        "predictions": load.num_predictions,
        "predictions_failed": sum(load.failures.values()),
        "prediction_failures": load.failures,
        "latency_ms": {"p50": load.percentile_ms(50), "p99": load.percentile_ms(99)},
        "model_version_server": last["model_digest"],
        "model_version_devices": {device.name: device.model_digest for device in devices},
        "round_overhead_s": round_overhead_s(rounds, devices),
        "round_s": statistics.median(metrics["round_s"] for metrics in rounds[1:]),
    }


def round_overhead_s(rounds: Sequence[Mapping[str, Any]], devices: Sequence[DeviceReport]) -> float:
    """Return the median of round time less the slowest device's training time."""
    overheads = []
    for metrics in rounds[1:]:
        slowest = max(device.train_seconds.get(metrics["round"], 0.0) for device in devices)
        overheads.append(metrics["round_s"] - slowest)
    return float(statistics.median(overheads))


def complaints(summary: Mapping[str, Any], num_rounds: int) -> list[str]:
    """Return what keeps a demo from being a success, one line each."""
    found = []
    if summary["rounds"] != num_rounds:
        found.append(f"only {summary['rounds']} of {num_rounds} rounds committed")
    if summary["predictions_failed"]:
        found.append(f"{summary['predictions_failed']} predictions failed")
    if not summary["predictions"]:
        found.append("no prediction was answered")
    for name, version in summary["model_version_devices"].items():
        if not version:
            found.append(f"{name} does not answer")
        elif version != summary["model_version_server"]:
            found.append(f"{name} serves {version[:12]}, not the server's last version")
    return found
