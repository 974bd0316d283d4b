"""What a person sees while the demo runs, and the table it ends with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from simulation.demo.load import LoadSnapshot

RECENT = 500


class DemoView:
    """A live table on a terminal, one line a round elsewhere."""

    def __init__(self, console: Console, num_rounds: int, num_devices: int) -> None:
        self._console = console
        self._num_rounds = num_rounds
        self._num_devices = num_devices
        self._live: Live | None = None
        self._printed = 0

    @contextmanager
    def running(self) -> Iterator[DemoView]:
        """Show the table until the block ends."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, refresh_per_second=4) as self._live:
            yield self

    def stage(self, text: str) -> None:
        """Say what happens next."""
        self._console.print(f"[dim]{text}[/dim]", highlight=False)

    def update(self, rounds: Sequence[Mapping[str, Any]], load: LoadSnapshot, rate: float) -> None:
        """Show the rounds so far and how the devices answer."""
        if self._live is not None:
            self._live.update(self._table(rounds, load, rate))
            return
        for metrics in rounds[self._printed :]:
            self._console.print(
                f"round {metrics['round']}/{self._num_rounds}  "
                f"devices {metrics['num_accepted']}/{self._num_devices}  "
                f"accuracy {metrics['accuracy_test']:.3f}  "
                f"ε {max_epsilon(metrics):.2f}  refinement {metrics['refinement']}  "
                f"{rate:.0f} predictions/s  p99 {load.percentile_ms(99, RECENT):.1f} ms",
                highlight=False,
            )
        self._printed = len(rounds)

    def _table(self, rounds: Sequence[Mapping[str, Any]], load: LoadSnapshot, rate: float) -> Table:
        table = Table(
            title=f"fedge demo: round {max(0, len(rounds) - 1)} of {self._num_rounds}",
            caption=(
                f"{load.num_predictions} predictions answered by the devices, "
                f"{sum(load.failures.values())} failed, {rate:.0f}/s, "
                f"p50 {load.percentile_ms(50, RECENT):.2f} ms, "
                f"p99 {load.percentile_ms(99, RECENT):.2f} ms"
            ),
        )
        for name in ("round", "devices", "accuracy", "before refinement", "refinement", "ε", "s"):
            table.add_column(name, justify="right")
        for metrics in rounds:
            table.add_row(*_row(metrics, self._num_devices))
        return table


def max_epsilon(metrics: Mapping[str, Any]) -> float:
    """Return the largest ε of any device after a round."""
    return max(metrics["epsilon"].values(), default=0.0)


def _row(metrics: Mapping[str, Any], num_devices: int) -> tuple[str, ...]:
    before = metrics.get("accuracy_test_aggregate")
    return (
        str(metrics["round"]),
        f"{metrics['num_accepted']}/{num_devices}",
        f"{metrics['accuracy_test']:.3f}",
        "" if before is None else f"{before:.3f}",
        str(metrics["refinement"]),
        f"{max_epsilon(metrics):.2f}",
        f"{metrics['round_s']:.2f}",
    )


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return the closing table of a demo."""
    latency = summary["latency_ms"]
    devices = summary["model_version_devices"]
    same = sum(version == summary["model_version_server"] for version in devices.values())
    rows = (
        ("accuracy at the start", f"{summary['accuracy_initial']:.3f}"),
        ("accuracy, devices alone (FedAvg with DP)", f"{summary['accuracy_fedavg_only']:.3f}"),
        ("accuracy, cloud alone (proxy data)", f"{summary['accuracy_cloud_only']:.3f}"),
        ("accuracy, both: this federation", f"[bold]{summary['accuracy_final']:.3f}[/bold]"),
        (
            "refinements accepted / rejected",
            f"{summary['refinements_accepted']} / {summary['refinements_rejected']}",
        ),
        (
            "ε of the devices, all rounds together",
            ", ".join("?" if e is None else f"{e:.2f}" for e in summary["epsilon"].values())
            + f"  (δ = {summary['delta']:g})",
        ),
        (
            "predictions answered / failed",
            f"{summary['predictions']} / {summary['predictions_failed']}",
        ),
        ("prediction latency p50 / p99", f"{latency['p50']:.2f} / {latency['p99']:.2f} ms"),
        ("devices on the server's last version", f"{same} of {len(devices)}"),
        ("round overhead (round less slowest training)", f"{summary['round_overhead_s']:.2f} s"),
    )
    table = Table(title="What each half adds", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    return table
