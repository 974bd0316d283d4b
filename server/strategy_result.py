"""What a strategy says before its rounds, and what they came to, for Flower's own `Result`."""

from __future__ import annotations

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from server.checkpoint import Checkpoint
from server.round_commit import TrainingReport
from server.settings import ServerConfig


def describe(config: ServerConfig, state: Checkpoint, *, refines: bool) -> str:
    """Return what is going to happen, for the log."""
    rounds, aggregation = config.rounds, config.aggregation
    return (
        f"run {state.run_name}, {state.layout.size} parameters: from round {state.round + 1}, "
        f"cohort {rounds.cohort_size or 'of all devices'}, deadline {rounds.deadline_s:g} s, "
        f"quorum {rounds.quorum:g}, {aggregation.aggregator} + {aggregation.server_optimizer}, "
        f"refinement {'on' if refines else 'off'}"
    )


def add_to(result: Result, committed: Checkpoint, training: TrainingReport) -> None:
    """File a committed round where Flower's own strategies would."""
    metrics = committed.metrics
    central = {
        name: float(value)
        for name, value in metrics.items()
        if name.endswith(("_test", "_gate")) and value is not None
    }
    result.evaluate_metrics_serverapp[committed.round] = MetricRecord(dict(central))
    counts = {"num-accepted": training.num_accepted, "num-late": training.num_late}
    result.train_metrics_clientapp[committed.round] = MetricRecord(dict(counts))
