"""Everything a ServerApp does: load or resume, run the rounds, commit, and say how it ended."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedge.errors import CheckpointError, ConfigError
from fedge.params import Layout, Vector
from fedge.privacy.noise import Draws
from fedge.records import to_array_record
from fedge.task import CloudData, Task, load_task
from fedge.training.local import LocalTrainer
from server.central_privacy import NoiseLog, charge, noise_of_round, open_account
from server.checkpoint import Checkpoint, CheckpointStore
from server.device_voice import DeviceVoice
from server.evaluation import CentralEvaluation
from server.events import EventLog, MetricsLog
from server.model_update import ModelUpdate
from server.reference import make_reference
from server.refine import Refiner, make_refiner
from server.refine_step import Refined, RefineStep
from server.refinement_gate import RefinementGate
from server.refinement_modes import MODES
from server.round_commit import RoundCommit, TrainingReport
from server.settings import ServerConfig
from server.strategy import HybridStrategy
from server.tuner.tuner import Tuner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    Attributes:
        rounds: lines of ``metrics.jsonl``, those before a resume too, round 0 first.
        resumed_from: round that this process began from; None for a new run.
        reason: why it ended before its last round; empty if it did not.
    """

    run_name: str
    layout: Layout
    weights: Vector
    rounds: tuple[dict[str, Any], ...]
    resumed_from: int | None = None
    reason: str = ""

    @property
    def refinements(self) -> dict[str, int]:
        """Number of refinements ``accepted``, ``rejected`` and ``failed``."""
        counts = Counter(entry.get("refinement") for entry in self.rounds)
        return {status: counts[status] for status in ("accepted", "rejected", "failed")}


def run_federation(
    grid: Grid,
    config: ServerConfig,
    *,
    task: Task | None = None,
    refiner: Refiner | None = None,
    draws: Callable[[int], Draws] | None = None,
    on_commit: Callable[[dict[str, Any]], None] | None = None,
) -> RunSummary:
    """Run a federation to its last round, resuming it where its run folder has a checkpoint.

    Args:
        grid: the way to the nodes.
        config: of the server.
        task: what is learnt; None loads the configured one.
        refiner: cloud trainer, closed by the caller; None makes the configured one.
        draws: where central noise comes from, by round, if it is to repeat (simulation); None is
            the operating system's entropy.
        on_commit: told each round's line of metrics.

    Raises:
        FedgeError: the run cannot go on; started again, it resumes after the last round.
    """
    folder = _make_folder(config.run_dir)
    events = EventLog(folder)
    with _told_how_it_ends(events) as ending:
        task = task or load_task(config.task.name, **config.task.options)
        own = make_refiner(config, task) if refiner is None else None
        try:
            summary = _run(grid, config, task, refiner or own, events, draws, on_commit)
        finally:
            if own is not None:
                own.close()
        ending.update(rounds=len(summary.rounds) - 1, reason=summary.reason)
        return summary


def _run(
    grid: Grid,
    config: ServerConfig,
    task: Task,
    refiner: Refiner | None,
    events: EventLog,
    draws: Callable[[int], Draws] | None,
    on_commit: Callable[[dict[str, Any]], None] | None,
) -> RunSummary:
    trainer = LocalTrainer(task)
    data = task.cloud_data()
    metrics = MetricsLog(config.run_dir)
    store = CheckpointStore(config.run_dir / "checkpoints")
    commit = RoundCommit(store, metrics, events, CentralEvaluation(trainer, data), on_commit)
    update = ModelUpdate(config, trainer.layout, draws)
    refine = None if refiner is None else _refine_step(config, trainer, data, refiner)
    found = store.latest()
    if found is None:
        state = _begin(config, trainer, commit)
    else:
        state = _resume(config, trainer.layout, found, metrics)
        state = replace(state, memory=_account_of(config, state, store.latest_round() or 0))
        if refine is not None:
            refine.resume(state.round, state.weights, state.metrics)
    events.append(
        "run-started",
        run_name=config.run_name,
        round=state.round,
        num_rounds=config.rounds.num_rounds,
        resumed=found is not None,
    )
    tuner = None
    if config.tuner.sampler:
        tuner = Tuner(config, task, data, trainer.layout, draws, state.seed)
    reference = make_reference(config, task)
    strategy = HybridStrategy(
        config,
        state,
        update=update,
        reference=reference,
        refine=refine,
        commit=commit,
        events=events,
        tuner=tuner,
    )
    try:
        strategy.start(
            grid, to_array_record(state.layout, state.weights), num_rounds=config.rounds.num_rounds
        )
    finally:
        if reference is not None:
            reference.close()
    if tuner is not None:
        tuner.tell(strategy.state)
    return RunSummary(
        run_name=config.run_name,
        layout=trainer.layout,
        weights=strategy.state.weights,
        rounds=tuple(metrics.read()),
        resumed_from=None if found is None else found.round,
        reason=strategy.stop_reason,
    )


def _refine_step(
    config: ServerConfig, trainer: LocalTrainer, data: CloudData, refiner: Refiner
) -> RefineStep:
    wanted = config.refine
    mode = MODES[wanted.mode](wanted, trainer.layout, refiner)
    gate = RefinementGate(trainer, data, wanted, config.seed)
    voice = DeviceVoice(config.evaluate, wanted.devices_margin)
    return RefineStep(mode, gate, voice, config.rounds.num_rounds)


def _begin(config: ServerConfig, trainer: LocalTrainer, commit: RoundCommit) -> Checkpoint:
    """Commit the initial weights as round 0, so that devices can be served at once."""
    weights = trainer.initial_weights(config.seed)
    account = open_account(config.central_privacy, {}, 0)
    state = Checkpoint(
        config.run_name, 0, trainer.layout, weights, memory=account, seed=config.seed
    )
    return commit.commit(state, TrainingReport(), weights, Refined(weights), None)


def _account_of(config: ServerConfig, state: Checkpoint, latest_round: int) -> dict[str, Any]:
    """Return the memory that a run resumes with, lost rounds on its account.

    Later checkpoints that are damaged were published all the same.
    """
    memory = open_account(config.central_privacy, state.memory, state.round)
    noise_log = NoiseLog(config.run_dir)
    for lost in range(state.round + 1, latest_round + 1):
        memory = charge(memory, noise_log.least(lost) or noise_of_round(config, lost))
    return memory


def _resume(
    config: ServerConfig, layout: Layout, found: Checkpoint, metrics: MetricsLog
) -> Checkpoint:
    """Return the checkpoint to go on from, or refuse one of another run or model."""
    folder = config.run_dir
    if found.run_name != config.run_name:
        raise CheckpointError(
            f"{folder} holds the run {found.run_name!r}, the configuration names "
            f"{config.run_name!r}: set run_name back to resume it, or choose another run_dir"
        )
    if found.layout.digest != layout.digest:
        raise CheckpointError(
            f"{folder}: the checkpoint of round {found.round} is of a model with "
            f"{found.layout.size} parameters in {len(found.layout.names)} tensors, the task's has "
            f"{layout.size} in {len(layout.names)}, or their names differ: give back the task "
            "that it was made with, or choose another run_dir"
        )
    if found.seed != config.seed:
        log.warning("seed = %d is ignored: the run began with %d", config.seed, found.seed)
    metrics.reconcile(found.metrics)
    log.info("resuming %s after round %d", found.run_name, found.round)
    return found


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {folder}: {error.strerror}", key="run_dir") from error
    return folder


@contextmanager
def _told_how_it_ends(events: EventLog) -> Iterator[dict[str, Any]]:
    """Append the event ``run-finished`` when the block ends, unless the process is stopped."""
    ending: dict[str, Any] = {"rounds": 0, "reason": ""}
    try:
        yield ending
    except Exception as error:  # told to the supervisor and passed on
        ending["reason"] = str(error) or type(error).__name__
        events.append("run-finished", status="failed", **ending)
        raise
    events.append("run-finished", status="complete", **ending)
