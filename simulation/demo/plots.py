"""The demo's three pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

from simulation.demo.load import LoadSnapshot

SIZE_INCHES = (7.0, 4.0)


def draw(
    folder: Path,
    rounds: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    load: LoadSnapshot,
) -> None:
    """Write ``accuracy.png``, ``latency.png`` and ``epsilon.png``."""
    _draw_accuracy(folder / "accuracy.png", rounds, summary)
    _draw_latency(folder / "latency.png", load)
    _draw_epsilon(folder / "epsilon.png", rounds)


def _draw_accuracy(
    path: Path, rounds: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
    figure, axes = plt.subplots(figsize=SIZE_INCHES)
    numbers = [metrics["round"] for metrics in rounds]
    axes.plot(numbers, [m["accuracy_test"] for m in rounds], marker="o", label="global model")
    before = [(m["round"], m["accuracy_test_aggregate"]) for m in rounds[1:]]
    axes.plot(*zip(*before, strict=True), ".--", label="aggregate, before refinement")
    axes.axhline(
        summary["accuracy_cloud_only"], color="tab:green", lw=1, label="cloud alone, at the end"
    )
    axes.axhline(
        summary["accuracy_fedavg_only"], color="tab:red", lw=1, label="devices alone, at the end"
    )
    axes.set(xlabel="round", ylabel="accuracy on the test set", title="What each half adds")
    _finish(figure, axes, path)


def _draw_latency(path: Path, load: LoadSnapshot) -> None:
    figure, axes = plt.subplots(figsize=SIZE_INCHES)
    ordered = np.sort(np.asarray(load.latencies_ms))
    share = np.arange(1, len(ordered) + 1) / len(ordered)
    axes.plot(ordered, share, label="all devices")
    for percent in (50, 99):
        axes.axvline(load.percentile_ms(percent), ls=":", lw=1, color="grey")
        axes.text(load.percentile_ms(percent), 0.02, f" p{percent}", color="grey")
    axes.set(
        xscale="log",
        xlabel="latency of a prediction over gRPC, ms",
        ylabel="share of predictions",
        title="Predictions while the devices train and swap models",
    )
    _finish(figure, axes, path)


def _draw_epsilon(path: Path, rounds: Sequence[Mapping[str, Any]]) -> None:
    figure, axes = plt.subplots(figsize=SIZE_INCHES)
    nodes = sorted({node for metrics in rounds for node in metrics["epsilon"]})
    for index, node in enumerate(nodes):
        points = [(m["round"], m["epsilon"][node]) for m in rounds if node in m["epsilon"]]
        axes.plot(*zip(*points, strict=True), marker=".", label=f"node {index + 1}")
    axes.set(xlabel="round", ylabel="ε spent", title="Privacy spent, all rounds together")
    _finish(figure, axes, path)


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.grid(visible=True, alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
