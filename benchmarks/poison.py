"""What malicious clients cost: every aggregation method against every attack, same seeds.

A loss is the accuracy of unattacked weighted FedAvg less that of the attacked method, in points of
test accuracy. The setting was fixed beforehand with unattacked FedAvg alone; no method and no
attack has a setting of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aggregation.cohort import aggregator_names
from benchmarks.harness import CannotRun, progress
from benchmarks.jobs import run_jobs, scratch_folder
from benchmarks.poison_table import EXEMPT, NO_ATTACK, Table, summarize, worst_loss
from benchmarks.tasks.mnist_writers import NUM_TEST_A_ROUND, MnistWriters
from fedge.config import build
from fedge.task import Task
from fedge.tasks.digits import Digits
from server.contradictions import PRIVATE_MEAN
from server.settings import AggregationConfig
from simulation.attacks.methods import attack_names
from simulation.runner import simulate
from simulation.settings import AttackConfig, SimulateConfig

BASELINE = "weighted-mean"
FLTRUST = "fltrust"
DEFAULT = AggregationConfig().aggregator
DIGITS = {"digits-iid": 1e6, "digits-dirichlet-0.3": 0.3}
MNIST = "mnist-writers"
PRIVATE = "-dp"
DIGITS_SEEDS, PRIVATE_SEEDS, MNIST_SEEDS = range(5), range(2), range(2)
NUM_DIGITS_CLIENTS = 20
MALICIOUS_FRACTION = 0.2
EPSILON = 8.0
NUM_ROUNDS, MNIST_ROUNDS, QUICK_ROUNDS = 30, 10, 2
DIGITS_TRAIN: dict[str, Any] = {"learning_rate": 0.5, "local_epochs": 2, "batch_size": 32}
MNIST_TRAIN: dict[str, Any] = {"learning_rate": 0.1, "local_epochs": 1, "batch_size": 10}
MNIST_COHORT = 50


@dataclass(frozen=True)
class PoisonRun:
    """One federation.

    Attributes:
        setting: a key of `DIGITS`, that with ``-dp`` behind it, or ``mnist-writers``.
    """

    setting: str
    method: str
    attack: str
    seed: int
    num_rounds: int = NUM_ROUNDS

    @property
    def key(self) -> str:
        """Name of the run."""
        rounds = f"{self.num_rounds}-rounds"
        return "/".join((self.setting, self.method, self.attack, f"seed-{self.seed}", rounds))


def measure(*, quick: bool, results: Path | None = None) -> dict[str, Any]:
    """Return the default's and FLTrust's worst losses, and the table of all."""
    runs = plan_runs(quick=quick)
    found = run_jobs(work, runs, results=results)
    points = {
        (run.setting, run.method, run.attack, run.seed): found[run.key]["points"] for run in runs
    }
    table = summarize(points, BASELINE)
    return {"setup": _setup(quick=quick), **_worsts(table), "table": table}


def _worsts(table: Table) -> dict[str, float | None]:
    """Return the largest mean loss over the attacks that count; None for what did not run."""
    iid, noniid = DIGITS
    places = {"iid": iid, "noniid": noniid, "mnist": MNIST}
    places |= {f"{name}_dp": place + PRIVATE for name, place in (("iid", iid), ("noniid", noniid))}
    names = {"worst": DEFAULT, "fltrust": FLTRUST}
    return {
        f"{name}_{place}_points": worst_loss(table, setting, method)
        for name, method in names.items()
        for place, setting in places.items()
    }


def _setup(*, quick: bool) -> str:
    num_rounds = QUICK_ROUNDS if quick else NUM_ROUNDS
    attack = AttackConfig()
    return (
        f"{MALICIOUS_FRACTION:.0%} malicious clients. Digits: {NUM_DIGITS_CLIENTS} clients, IID "
        f"and Dirichlet 0.3, {num_rounds} rounds, {_say(DIGITS_TRAIN)}, seeds "
        f"{list(DIGITS_SEEDS[:1] if quick else DIGITS_SEEDS)}; with -dp under local DP, epsilon "
        f"{EPSILON:g}, delta 1e-5, malicious clients too, seeds {list(PRIVATE_SEEDS)}. MNIST by "
        f"writer: 515 clients, {MNIST_COHORT} a round, {MNIST_ROUNDS} rounds, {_say(MNIST_TRAIN)}, "
        f"seeds {list(MNIST_SEEDS)}, not in quick runs. Scale and gaussian are {attack.factor:g} "
        f"times as long as an honest update, ipm is -{attack.ipm_epsilon:g} times the colluders' "
        "mean, alie's z follows from the cohort (0.16 on digits). A loss is test accuracy of "
        f"unattacked {BASELINE} (under the same privacy) less the attacked method's, in points, "
        f"mean over seeds; the worst is over the attacks but {' and '.join(sorted(EXEMPT))}. "
        f"Default: {DEFAULT}."
    )


def _say(train: dict[str, Any]) -> str:
    return (
        f"SGD {train['learning_rate']:g}, {train['local_epochs']} local epochs, "
        f"batch {train['batch_size']}"
    )


def plan_runs(*, quick: bool) -> list[PoisonRun]:
    """Return every run: unattacked and attacked, digits first."""
    if quick:
        return [
            PoisonRun(setting, method, attack, 0, QUICK_ROUNDS)
            for setting in DIGITS
            for method in {BASELINE: 0, DEFAULT: 0, **dict.fromkeys(_known([FLTRUST]), 0)}
            for attack in (NO_ATTACK, "sign-flip")
        ]
    attacks = [NO_ATTACK, *attack_names()]
    reported = _known([DEFAULT, FLTRUST])
    plan = [
        *_grid(DIGITS, compared(), attacks, DIGITS_SEEDS),
        *_grid([name + PRIVATE for name in DIGITS], reported, attacks, PRIVATE_SEEDS),
        *_grid([name + PRIVATE for name in DIGITS], [BASELINE], [NO_ATTACK], PRIVATE_SEEDS),
    ]
    try:
        MnistWriters()
    except CannotRun as reason:
        progress(f"without MNIST: {reason}")
        return plan
    plan += [
        replace(run, num_rounds=MNIST_ROUNDS)
        for run in (
            *_grid([MNIST], [BASELINE], [NO_ATTACK], MNIST_SEEDS),
            *_grid([MNIST], reported, attacks, MNIST_SEEDS),
        )
    ]
    return list(dict.fromkeys(plan))


def work(run: PoisonRun) -> dict[str, Any]:
    """Run one federation through the server's own code."""
    task, num_clients = _task_of(run)
    with scratch_folder() as folder:
        result = simulate(config_of(run, num_clients, folder), task=task)
        accuracy = result.accuracy_test
        if isinstance(task, MnistWriters):
            accuracy = task.accuracy(folder)
    return {"points": 100 * accuracy, "refused": result.rounds[-1]["refused"]}


def config_of(run: PoisonRun, num_clients: int, folder: Path) -> SimulateConfig:
    """Return one run's configuration; what does not name the run is the product's default."""
    is_mnist = run.setting == MNIST
    train = dict(MNIST_TRAIN if is_mnist else DIGITS_TRAIN)
    if run.method == "scaffold":
        train["client_term"] = "scaffold"  # its other half; the server refuses one without it
    server = {
        "run_dir": str(folder),
        "seed": run.seed,
        "rounds": {
            "num_rounds": run.num_rounds,
            "cohort_size": MNIST_COHORT if is_mnist else 0,
            "deadline_s": 3600.0,
        },
        "train": train,
        "aggregation": {"aggregator": run.method, "malicious_fraction": MALICIOUS_FRACTION},
        "evaluate": {"every_rounds": 0},
    }
    tree = {
        "num_clients": num_clients,
        "server": server,
        "privacy": {"enabled": run.setting.endswith(PRIVATE), "epsilon": EPSILON},
        "attack": {"name": run.attack, "fraction": MALICIOUS_FRACTION},
    }
    return build(SimulateConfig, tree)


def _task_of(run: PoisonRun) -> tuple[Task, int]:
    if run.setting == MNIST:
        mnist = MnistWriters(seed=run.seed, num_test=NUM_TEST_A_ROUND)
        return mnist, mnist.num_clients
    alpha = DIGITS[run.setting.removesuffix(PRIVATE)]
    return Digits(seed=run.seed, alpha=alpha), NUM_DIGITS_CLIENTS


def compared() -> list[str]:
    """Return every aggregator but the private mean: its noise is against readers."""
    return [name for name in aggregator_names() if name != PRIVATE_MEAN]


def _known(names: list[str]) -> list[str]:
    return [name for name in names if name in aggregator_names()]


def _grid(settings: Any, methods: list[str], attacks: list[str], seeds: range) -> list[PoisonRun]:
    return [
        PoisonRun(setting, method, attack, seed)
        for seed in seeds
        for setting in settings
        for method in methods
        for attack in attacks
    ]
