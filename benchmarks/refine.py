"""What refinement between rounds is worth: MNIST by writer, with it and without, same seeds.

The setting of the devices is that of the benchmark ``poison``, fixed with plain FedAvg alone. How
the cloud refines was chosen on seed 100, which no figure comes from. The test set decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.harm import Witness, num_significant
from benchmarks.jobs import run_jobs, scratch_folder
from benchmarks.tasks.mnist_writers import MnistWriters
from fedge.config import build
from fedge.training.local import LocalTrainer
from server.refine import make_refiner
from server.settings import ServerConfig
from simulation.cloud_only import train_cloud_only
from simulation.runner import simulate
from simulation.settings import SimulateConfig

FEDAVG, REFINED, SHIFTED, CLOUD_ONLY = "fedavg", "refined", "shifted", "cloud-only"
MAIN_PROXY = 600
PROXY_SIZES = (100, MAIN_PROXY, 3000)
SHIFTED_CLASSES = 5
SEEDS = range(3)
NUM_ROUNDS, COHORT = 30, 50
TARGET = 0.9
LEVEL = 0.01
NUM_CLOUD_WRITERS = 60
"""Enough for 3,000 proxy images, and the same for fewer, so that the clients are the same."""
TRAIN: dict[str, Any] = {"learning_rate": 0.1, "local_epochs": 1, "batch_size": 10}
REFINE: dict[str, Any] = {
    "steps": 300,
    "learning_rate": 0.05,
    "batch_size": 32,
    "augmentation": "affine",
    "max_shift": 0.07,
}
DEADLINE_S = 86400.0


@dataclass(frozen=True)
class RefineRun:
    """One federation, or one training on the proxy data alone.

    Attributes:
        arm: ``fedavg``, ``refined``, ``shifted`` (proxy and gate images show 0 to 4 alone) or
            ``cloud-only``.
        num_proxy: proxy images; of no consequence to ``fedavg``.
    """

    arm: str
    num_proxy: int
    seed: int
    num_rounds: int = NUM_ROUNDS
    cohort: int = COHORT
    num_test: int = 10_000

    @property
    def key(self) -> str:
        """Name of the run; other sizes are another run."""
        sizes = f"{self.num_rounds}x{self.cohort}-{self.num_test}"
        return f"{self.arm}-{self.num_proxy}/seed-{self.seed}/{sizes}"

    @property
    def is_refined(self) -> bool:
        """Tell whether rounds are refined."""
        return self.arm in (REFINED, SHIFTED)


def measure(*, quick: bool, results: Path | None = None) -> dict[str, Any]:
    """Return the figures for 600 proxy images, and a table of all sizes."""
    runs = plan_runs(quick=quick)
    _task_of(runs[0])  # says here, and not in a child process, that the data are missing
    return summarize(runs, run_jobs(work, runs, results=results))


def plan_runs(*, quick: bool, seeds: Sequence[int] = SEEDS) -> list[RefineRun]:
    """Return every run, by seed."""
    arms = [(FEDAVG, MAIN_PROXY), (SHIFTED, MAIN_PROXY)]
    arms += [(arm, size) for size in PROXY_SIZES for arm in (REFINED, CLOUD_ONLY)]
    if quick:
        small: dict[str, int] = {"num_rounds": 2, "cohort": 4, "num_test": 500}
        return [RefineRun(arm, size, seeds[0], **small) for arm, size in arms if size < 3000]
    return [RefineRun(arm, size, seed) for seed in seeds for arm, size in arms]


def work(run: RefineRun) -> dict[str, Any]:
    """Do one run through the server's own code."""
    task = _task_of(run)
    if run.arm == CLOUD_ONLY:
        return _train_cloud_only(run, task)
    with scratch_folder() as folder:
        config = config_of(run, task.num_clients, folder)
        refiner = make_refiner(config.server, task)
        if refiner is None:
            rounds = simulate(config, task=task).rounds
            return {"by_round": [line["accuracy_test"] for line in rounds]}
        witness = Witness(refiner, task, folder)
        with closing(witness):
            rounds = simulate(config, task=task, refiner=witness, on_round=witness.look).rounds
    return {
        "by_round": [line["accuracy_test"] for line in rounds],
        "refinement": [line["refinement"] for line in rounds],
        "blends": [(line["refinement_detail"] or {}).get("blend") for line in rounds],
        "accepted": witness.drops,
    }


def config_of(run: RefineRun, num_clients: int, folder: Path) -> SimulateConfig:
    """Return one run's configuration; what does not name the run is the product's default."""
    server = {
        "run_dir": str(folder),
        "seed": run.seed,
        "rounds": {
            "num_rounds": run.num_rounds,
            "cohort_size": run.cohort,
            "deadline_s": DEADLINE_S,
        },
        "train": TRAIN,
        "aggregation": {"aggregator": "weighted-mean"},
        "refine": {
            "trainer": "" if run.arm == FEDAVG else "in-process",
            "deadline_s": DEADLINE_S,
            **REFINE,
        },
    }
    tree = {
        "num_clients": num_clients,
        "server": server,
        "privacy": {"enabled": False},
        "engine": {"workers": 1},  # `run_jobs` has a process on every core already
    }
    return build(SimulateConfig, tree)


def _task_of(run: RefineRun) -> MnistWriters:
    task = MnistWriters(
        seed=run.seed,
        num_proxy=run.num_proxy,
        num_test=run.num_test,
        num_cloud_writers=NUM_CLOUD_WRITERS,
    )
    return replace(task, cloud_classes=SHIFTED_CLASSES) if run.arm == SHIFTED else task


def _train_cloud_only(run: RefineRun, task: MnistWriters) -> dict[str, Any]:
    """Return the accuracies after as many steps on proxy data alone, with the gate and without."""
    with scratch_folder() as folder:
        config = config_of(run, task.num_clients, folder).server
    free = replace(config, refine=replace(config.refine, held_out=0.0, blends=(1.0,)))
    return {"gated": train_cloud_only(config, task), "free": _train_freely(free, task)}


def _train_freely(config: ServerConfig, task: MnistWriters) -> float:
    """Return the accuracy after all steps on all proxy data, each refinement kept."""
    trainer = LocalTrainer(task)
    weights = trainer.initial_weights(config.seed)
    refiner = make_refiner(config, task)
    assert refiner is not None
    with closing(refiner):
        for round in range(1, config.rounds.num_rounds + 1):
            weights = refiner.refine(weights, round=round, deadline_s=DEADLINE_S).weights
    return trainer.evaluate(weights, task.cloud_data().test)["accuracy"]


def summarize(runs: Sequence[RefineRun], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the benchmark's keys, and a row for each number of proxy images."""
    seeds = sorted({run.seed for run in runs})
    by_arm: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for run in sorted(runs, key=lambda each: each.seed):
        by_arm.setdefault((run.arm, run.num_proxy), []).append(found[run.key])
    fedavg = by_arm[FEDAVG, MAIN_PROXY]
    rows = {
        str(size): _row(by_arm[REFINED, size], fedavg, by_arm[CLOUD_ONLY, size])
        for arm, size in by_arm
        if arm == REFINED
    }
    shifted = by_arm[SHIFTED, MAIN_PROXY]
    losses = [_points(one) - _points(other) for one, other in zip(fedavg, shifted, strict=True)]
    main = rows[str(MAIN_PROXY)]
    shared = ("rounds_refined", "rounds_ratio", "gain_points", "gain_over_cloud_only_points")
    return {
        "setup": _setup(runs[0], seeds),
        "rounds_fedavg": mean(_rounds_to_target(each) for each in fedavg),
        **{key: main[key] for key in shared},
        "harmful_accepted": sum(row["harmful_accepted"] for row in rows.values()),
        "shifted_loss_points": round(max(losses), 2),
        "by_proxy_images": rows,
        "fedavg_points": [round(_points(each), 2) for each in fedavg],
        "shifted": {
            "points": [round(_points(each), 2) for each in shifted],
            "harmful_accepted": sum(map(_num_harmful, shifted)),
            "accepted": [len(each["accepted"]) for each in shifted],
        },
    }


def _row(
    refined: Sequence[Mapping[str, Any]],
    fedavg: Sequence[Mapping[str, Any]],
    cloud: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    points = [_points(each) for each in refined]
    alone = [100 * max(each["gated"], each["free"]) for each in cloud]
    rounds = [_rounds_to_target(each) for each in refined]
    return {
        "rounds_refined": mean(rounds),
        "rounds_ratio": round(mean(rounds) / mean(map(_rounds_to_target, fedavg)), 3),
        "gain_points": round(mean(points) - mean(map(_points, fedavg)), 2),
        "gain_over_cloud_only_points": round(mean(points) - mean(alone), 2),
        "harmful_accepted": sum(map(_num_harmful, refined)),
        "points": [round(each, 2) for each in points],
        "cloud_only_points": [round(each, 2) for each in alone],
        "accepted": [len(each["accepted"]) for each in refined],
    }


def _points(found: Mapping[str, Any]) -> float:
    return 100 * float(found["by_round"][-1])


def _rounds_to_target(found: Mapping[str, Any]) -> int:
    """Return the first round at the target; one more than there are if none is."""
    by_round = found["by_round"]
    reached = (round for round, accuracy in enumerate(by_round) if accuracy >= TARGET)
    return next(reached, len(by_round))


def _num_harmful(found: Mapping[str, Any]) -> int:
    return num_significant([each["p"] for each in found["accepted"]], LEVEL)


def _setup(run: RefineRun, seeds: Sequence[int]) -> str:
    return (
        f"MNIST by writer, {run.cohort} writers a round, {run.num_rounds} rounds, SGD "
        f"{TRAIN['learning_rate']:g}, {TRAIN['local_epochs']} local epoch, batch "
        f"{TRAIN['batch_size']}, weighted mean, no DP; {NUM_CLOUD_WRITERS} writers are the "
        f"cloud's: {', '.join(map(str, PROXY_SIZES))} proxy and 600 gate images; each round "
        f"{REFINE['steps']} steps of SGD {REFINE['learning_rate']:g}, momentum 0.9, batch "
        f"{REFINE['batch_size']}, images varied ({REFINE['augmentation']}); the devices "
        "evaluate every 5 rounds; shifted: proxy and gate "
        f"images show digits 0 to 4 alone; seeds {list(seeds)}; means over seeds, the worst seed "
        f"for shifted_loss_points; rounds until {TARGET:.0%} of {run.num_test} test images; the "
        "proxy data alone: as many steps, the better of with the gate and without; harmful: "
        f"McNemar's one-sided exact test, {LEVEL:.0%}, Holm over each run's accepted rounds"
    )
