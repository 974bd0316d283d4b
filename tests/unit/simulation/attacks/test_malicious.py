"""Attacks in a whole simulation of a tiny task, through the server's own gate and mean."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.client_app import split_client_data
from fedge.config import build
from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.rng import stream_seed
from fedge.training.local import LocalTrainer
from server.checkpoint import CheckpointStore, read_checkpoint
from simulation.attacks.collusion import draw_members
from simulation.attacks.methods import attack_names
from simulation.runner import simulate
from simulation.settings import SimulateConfig
from tests.tiny_task import NUM_CLASSES, TinyTask

NUM_CLIENTS, FRACTION, SEED = 5, 0.4, 3
TASK = TinyTask(num_client=40)


def make_config(run_dir: Path, attack: str = "none", **more: Any) -> SimulateConfig:
    server = {
        "run_dir": str(run_dir),
        "seed": SEED,
        "rounds": {"num_rounds": more.pop("num_rounds", 1), "poll_interval_s": 0.01},
        "train": {"learning_rate": 0.3, "local_epochs": 2, "batch_size": 8},
        "aggregation": {"aggregator": "uniform-mean", **more.pop("aggregation", {})},
        "evaluate": {"every_rounds": 0},
    }
    tree = {
        "num_clients": NUM_CLIENTS,
        "server": server,
        "privacy": {"enabled": False, **more.pop("privacy", {})},
        "attack": {"name": attack, "fraction": FRACTION, "num_classes": NUM_CLASSES, **more},
    }
    return build(SimulateConfig, tree)


def change_of(config: SimulateConfig) -> tuple[Vector, dict[str, Any]]:
    """Return what a run changed the initial weights by, and the last round's metrics."""
    result = simulate(config, task=TASK)
    folder = CheckpointStore(result.run_dir / "checkpoints")
    last = folder.latest()
    assert last is not None
    first = read_checkpoint(folder.folder / "round-000000")
    return last.weights - first.weights, result.rounds[-1]


def mean_of(run_dir: Path, members: frozenset[int]) -> tuple[Vector, Vector]:
    """Return the mean honest delta of these clients and of the others, by hand."""
    config = make_config(run_dir)
    trainer = LocalTrainer(TASK)
    parent = trainer.initial_weights(SEED)
    deltas: dict[bool, list[Vector]] = {True: [], False: []}
    for client in range(NUM_CLIENTS):
        draws = Draws.seeded(stream_seed(SEED, "client", round=1, client=client))
        examples = split_client_data(TASK, client, NUM_CLIENTS, "train")
        trained = trainer.train(parent, examples, config.server.train, draws=draws)
        deltas[client in members].append(trained.delta)
    return np.mean(deltas[True], axis=0), np.mean(deltas[False], axis=0)


@pytest.mark.parametrize(
    ("attack", "weight_of_own", "weight_of_others"),
    [
        ("sign-flip", -0.4, 0.6),
        ("scale", -20 * 0.4, 0.6),
        ("ipm", -0.5 * 0.4, 0.6),
        ("nan", 0.0, 1.0),
        ("examples", 0.0, 1.0),
    ],
)
def test_the_mean_is_that_of_honest_and_forged_updates(
    tmp_path: Path, attack: str, weight_of_own: float, weight_of_others: float
) -> None:
    config = make_config(tmp_path / "run", attack)
    own, others = mean_of(tmp_path / "other", draw_members(config))
    change, _ = change_of(config)
    expected = weight_of_own * own + weight_of_others * others
    np.testing.assert_allclose(change, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("attack", "refused"),
    [("nan", {"not-finite": 2}), ("examples", {"examples": 2}), ("scale", {}), ("none", {})],
)
def test_the_gate_refuses_what_it_can_see(tmp_path: Path, attack: str, refused: Any) -> None:
    _, metrics = change_of(make_config(tmp_path, attack))
    assert metrics["refused"] == refused
    assert metrics["num_accepted"] == NUM_CLIENTS - sum(refused.values())


def test_flipped_labels_are_learnt(tmp_path: Path) -> None:
    config = make_config(tmp_path, "label-flip", fraction=0.99, num_rounds=5)
    assert draw_members(config) == frozenset(range(NUM_CLIENTS))
    # Of three classes the middle one is its own mirror.
    assert simulate(config, task=TASK).accuracy_test < 0.6


@pytest.mark.parametrize("attack", ["sign-flip", "scale", "gaussian"])
def test_a_plain_mean_is_harmed(tmp_path: Path, attack: str) -> None:
    clean = simulate(make_config(tmp_path / "clean", num_rounds=4), task=TASK)
    attacked = simulate(make_config(tmp_path / "hit", attack, num_rounds=4), task=TASK)
    assert clean.rounds[-1]["loss_test"] < 0.7 * attacked.rounds[-1]["loss_test"]


@pytest.mark.parametrize("attack", attack_names())
def test_an_attack_repeats_and_goes_through_every_codec(tmp_path: Path, attack: str) -> None:
    options = {"aggregation": {"codec": "int8"}, "num_rounds": 2}
    first, again = (
        simulate(make_config(tmp_path / name, attack, **options), task=TASK)
        for name in ("first", "again")
    )
    digests = [entry["model_digest"] for entry in first.rounds]
    assert [entry["model_digest"] for entry in again.rounds] == digests
    assert len(set(digests)) == 3


def test_malicious_clients_pay_for_their_training_like_honest_ones(tmp_path: Path) -> None:
    privacy = {"enabled": True, "epsilon": 8.0}
    plain, attacked = (
        simulate(make_config(tmp_path / name, name, privacy=privacy, num_rounds=2), task=TASK)
        for name in ("none", "ipm")
    )
    assert len(plain.epsilon) == NUM_CLIENTS
    assert attacked.epsilon == plain.epsilon


def test_the_seed_draws_who_is_malicious(tmp_path: Path) -> None:
    config = make_config(tmp_path, "scale")
    assert len(draw_members(config)) == 2
    assert draw_members(config) == draw_members(make_config(tmp_path, "alie"))
    assert draw_members(make_config(tmp_path)) == frozenset()
    drawn = {
        draw_members(build(SimulateConfig, {"server": {"seed": seed}, **tree}))
        for seed in range(20)
        for tree in [{"num_clients": 20, "attack": {"name": "scale"}}]
    }
    assert {len(members) for members in drawn} == {4}
    assert len(drawn) > 10
