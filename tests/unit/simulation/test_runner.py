"""Whole simulations of a tiny task, against averages and accounts computed by hand."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from edge_client.client_app import split_client_data
from fedge.config import build
from fedge.params import Vector
from fedge.privacy.accounting import Spend, calibrate, epsilon
from fedge.privacy.noise import Draws
from fedge.rng import stream_seed
from fedge.training.local import LocalTrainer
from server.checkpoint import CheckpointStore
from server.settings import CentralPrivacyConfig, EvaluateConfig
from simulation.runner import SimulationResult, simulate
from simulation.settings import SimulateConfig
from tests.tiny_task import TinyTask

NUM_CLIENTS, SEED, BATCH_SIZE, LOCAL_EPOCHS = 3, 5, 8, 2
PLAIN: dict[str, Any] = {"enabled": False}
PRIVATE: dict[str, Any] = {"enabled": True, "epsilon": 6.0}


@dataclass(frozen=True)
class UnequalTask(TinyTask):
    """Clients of different sizes, so that weights matter."""

    def client_data(self, client: int, num_clients: int) -> Any:
        return self._draw("client", 12 + 16 * client, client)


@dataclass(frozen=True)
class CutOffTask(UnequalTask):
    """Is interrupted, as by Ctrl-C, in the first training after a round was committed."""

    committed: Path = Path()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.committed.exists() and outputs.requires_grad:
            raise KeyboardInterrupt
        return super().loss(outputs, targets)


def make_config(
    run_dir: Path,
    *,
    num_rounds: int = 2,
    seed: int = SEED,
    privacy: dict[str, Any] = PLAIN,
    refine: str = "",
) -> SimulateConfig:
    server = {
        "run_dir": str(run_dir),
        "seed": seed,
        "rounds": {
            "num_rounds": num_rounds,
            "min_devices": NUM_CLIENTS,
            "poll_interval_s": 0.01,
        },
        "train": {"learning_rate": 0.3, "local_epochs": LOCAL_EPOCHS, "batch_size": BATCH_SIZE},
        "aggregation": {"aggregator": "weighted-mean"},
        "refine": {"trainer": refine, "steps": 10},
    }
    return build(SimulateConfig, {"num_clients": NUM_CLIENTS, "server": server, "privacy": privacy})


def final_weights(result: SimulationResult) -> Vector:
    stored = CheckpointStore(result.run_dir / "checkpoints").latest()
    assert stored is not None
    assert stored.digest == result.rounds[-1]["model_digest"]
    return stored.weights


def average_by_hand(config: SimulateConfig, task: TinyTask) -> Vector:
    """Run FedAvg of plain SGD clients in client order: w += Σ nᵢ δᵢ / Σ nᵢ, in float64."""
    trainer = LocalTrainer(task)
    weights = trainer.initial_weights(config.server.seed)
    for round in range(1, config.server.rounds.num_rounds + 1):
        total, count = np.zeros(weights.size), 0
        for client in range(NUM_CLIENTS):
            examples = split_client_data(task, client, NUM_CLIENTS, "train")
            seed = stream_seed(config.server.seed, "client", round=round, client=client)
            trained = trainer.train(
                weights, examples, config.server.train, draws=Draws.seeded(seed)
            )
            total += len(examples) * trained.delta.astype(np.float64)
            count += len(examples)
        weights = (weights + total / count).astype(np.float32)
    return weights


def test_a_simulation_of_plain_clients_is_fedavg(tmp_path: Path) -> None:
    task = UnequalTask()
    config = make_config(tmp_path)
    result = simulate(config, task=task)
    np.testing.assert_allclose(
        final_weights(result), average_by_hand(config, task), rtol=0, atol=1e-6
    )
    assert [entry["round"] for entry in result.rounds] == [0, 1, 2]
    assert {entry["num_accepted"] for entry in result.rounds[1:]} == {NUM_CLIENTS}
    assert result.epsilon == {}
    assert result.accuracy_test == result.rounds[-1]["accuracy_test"]


@pytest.mark.parametrize("privacy", [PLAIN, PRIVATE], ids=["plain", "private"])
def test_the_seed_decides_every_bit(tmp_path: Path, privacy: dict[str, Any]) -> None:
    task = UnequalTask()
    first, again, other = (
        simulate(make_config(tmp_path / name, seed=seed, privacy=privacy), task=task)
        for name, seed in (("first", SEED), ("again", SEED), ("other", SEED + 1))
    )
    digests = [entry["model_digest"] for entry in first.rounds]
    assert len(set(digests)) == 3
    assert [entry["model_digest"] for entry in again.rounds] == digests
    assert not set(digests) & {entry["model_digest"] for entry in other.rounds}
    assert again.epsilon == first.epsilon


@pytest.mark.parametrize("privacy", [PLAIN, PRIVATE], ids=["plain", "private"])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    tmp_path: Path, privacy: dict[str, Any]
) -> None:
    def configured(folder: str) -> SimulateConfig:
        config = make_config(tmp_path / folder, num_rounds=3, privacy=privacy)
        # Other backends may work plain losses out by themselves, and would not be interrupted.
        return replace(config, engine=replace(config.engine, backend="sequential"))

    whole = simulate(configured("whole"), task=UnequalTask())
    config = configured("cut")
    committed = tmp_path / "cut" / "checkpoints" / "round-000001"
    with pytest.raises(KeyboardInterrupt):
        simulate(config, task=CutOffTask(committed=committed))
    assert CheckpointStore(tmp_path / "cut" / "checkpoints").latest_round() == 1
    resumed = simulate(config, task=UnequalTask())
    assert [entry["round"] for entry in resumed.rounds] == [0, 1, 2, 3]
    assert final_weights(resumed).tobytes() == final_weights(whole).tobytes()
    assert resumed.epsilon == whole.epsilon


def test_more_rounds_are_added_to_a_finished_run(tmp_path: Path) -> None:
    task = UnequalTask()
    first = simulate(make_config(tmp_path, num_rounds=1), task=task)
    config = make_config(tmp_path, num_rounds=2)
    both = simulate(config, task=task)
    assert both.rounds[:2] == first.rounds
    np.testing.assert_allclose(
        final_weights(both), average_by_hand(config, task), rtol=0, atol=1e-6
    )


def test_rounds_added_to_a_private_run_cannot_spend_the_budget_twice(tmp_path: Path) -> None:
    task = UnequalTask()
    first = simulate(make_config(tmp_path, num_rounds=1, privacy=PRIVATE), task=task)
    both = simulate(make_config(tmp_path, num_rounds=2, privacy=PRIVATE), task=task)
    assert both.rounds[2]["num_accepted"] == 0
    assert both.rounds[2]["refused"] == {"budget": NUM_CLIENTS}
    assert final_weights(both).tobytes() == final_weights(first).tobytes()
    assert both.epsilon == first.epsilon


def test_epsilon_is_that_of_all_planned_rounds_and_within_the_budget(tmp_path: Path) -> None:
    task = UnequalTask()
    config = make_config(tmp_path, privacy=PRIVATE)
    result = simulate(config, task=task)
    expected = []
    for client in range(NUM_CLIENTS):
        num_examples = len(split_client_data(task, client, NUM_CLIENTS, "train"))
        public_count = 2 ** int(np.log2(num_examples))
        rate = BATCH_SIZE / public_count
        num_steps = LOCAL_EPOCHS * public_count // BATCH_SIZE
        noise = calibrate(rate, num_steps, 2, 6.0, 1e-5)
        expected.append(epsilon([Spend(noise, rate, 2 * num_steps)], 1e-5))
    reported = [result.epsilon[node] for node in sorted(result.epsilon)]
    assert reported == pytest.approx(expected, rel=1e-9)
    assert all(5.5 < value <= 6.0 * (1 + 1e-9) for value in reported)
    halfway = result.rounds[1]["epsilon"]
    assert all(0 < halfway[node] < value for node, value in result.epsilon.items())


def test_refinement_starts_from_the_same_aggregate_and_is_decided_by_the_gate(
    tmp_path: Path,
) -> None:
    task = UnequalTask()
    without = simulate(make_config(tmp_path / "without"), task=task)
    refined = simulate(make_config(tmp_path / "with", refine="in-process"), task=task)
    assert [entry["refinement"] for entry in without.rounds] == ["off"] * 3
    assert {entry["refinement"] for entry in refined.rounds[1:]} <= {"accepted", "rejected"}
    assert refined.rounds[1]["refinement"] == "accepted"
    assert refined.rounds[0]["model_digest"] == without.rounds[0]["model_digest"]
    assert refined.rounds[1]["accuracy_test_aggregate"] == without.rounds[1]["accuracy_test"]
    assert refined.rounds[1]["loss_gate"] < without.rounds[1]["loss_gate"]


def test_central_noise_is_seeded_and_repeats(tmp_path: Path) -> None:
    results = []
    for folder in ("one", "other"):
        config = make_config(tmp_path / folder)
        server = replace(
            config.server,
            rounds=replace(config.server.rounds, cohort_size=NUM_CLIENTS),
            aggregation=replace(config.server.aggregation, aggregator="private-mean"),
            central_privacy=CentralPrivacyConfig(noise_multiplier=1.0),
            evaluate=EvaluateConfig(every_rounds=0),
        )
        results.append(simulate(replace(config, server=server), task=UnequalTask()).rounds[-1])
    assert results[0]["epsilon_central"] == pytest.approx(epsilon([Spend(1.0, 1.0, 2)], 1e-5))
    assert results[0]["model_digest"] == results[1]["model_digest"]
