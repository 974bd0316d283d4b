"""Central privacy in virtual federations, and the split of its noise over a run's rounds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.config import build
from fedge.errors import ConfigError
from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.rng import stream, stream_seed
from fedge.training.local import LocalTrainer
from server.central_privacy import MEMORY, noise_of_round
from server.checkpoint import Checkpoint, CheckpointStore
from server.federation import run_federation
from server.settings import ServerConfig
from server.tuner.federation import VirtualFederation
from server.tuner.pseudo_clients import draw_clients, proxy_parts
from server.tuner.tuner import Tuner
from tests.tiny_task import TinyTask
from tests.unit.server import fake_grid

TASK = TinyTask()
SEED = 5
CLIP, NOISE, COHORT, NUM_ROUNDS = 0.02, 1.5, 30, 21
SPLIT = "central_privacy.noise_split"
SPLITS = {SPLIT: {"low": 0.01, "high": 100.0, "log": True}}
TUNER = {"clients": 3, "client_examples": 12, "virtual_rounds": 3}


def configure(run_dir: Path, rate: float = 0.3, split: float = 1.0, **tuner: Any) -> ServerConfig:
    tree = {
        "run_dir": str(run_dir),
        "rounds": {"num_rounds": NUM_ROUNDS, "cohort_size": COHORT},
        "train": {"learning_rate": rate, "local_epochs": 1, "batch_size": 4},
        "aggregation": {"aggregator": "private-mean"},
        "central_privacy": {"noise_multiplier": NOISE, "clip_norm": CLIP, "noise_split": split},
        "evaluate": {"every_rounds": 0},
        "tuner": {**TUNER, **tuner},
    }
    return build(ServerConfig, tree)


def begin(round: int = 4) -> Checkpoint:
    trainer = LocalTrainer(TASK)
    return Checkpoint("run", round, trainer.layout, trainer.initial_weights(0), seed=SEED)


def path_of(config: ServerConfig, state: Checkpoint) -> list[Vector]:
    """Return the weights that virtual rounds lead through, the first ones included."""
    made = VirtualFederation(TASK, config, TASK.cloud_data(), SEED)
    (trial,) = made.open(state, [config])
    for number in range(1, config.tuner.virtual_rounds + 1):
        made.advance([trial], number)
    return [state.weights, *trial.path]


def normal(number: int, size: int) -> Vector:
    draws = Draws.seeded(stream_seed(stream_seed(SEED, "tuner"), f"central-{number}", round=5))
    return draws.normal(size).numpy()


def test_a_virtual_round_clips_and_has_the_noise_of_a_real_cohorts_mean(tmp_path: Path) -> None:
    config, state = configure(tmp_path), begin()
    seed = stream_seed(SEED, "tuner")
    fit, _ = proxy_parts(TASK.cloud_data().proxy, config)
    total = np.zeros(len(state.weights))
    clients = draw_clients(fit, 3, 12, 1.0, stream(seed, "clients", round=5))
    for client, examples in enumerate(clients):
        draws = Draws.seeded(stream_seed(seed, "draws-1", round=5, client=client))
        trained = LocalTrainer(TASK).train(state.weights, examples, config.train, draws=draws)
        delta = trained.delta.astype(np.float64)
        norm = float(np.linalg.norm(delta))
        assert norm > CLIP
        total += delta * CLIP / norm
    expected = total / 3 + NOISE * CLIP / COHORT * normal(1, len(total))
    found = path_of(config, state)
    np.testing.assert_allclose(found[1] - found[0], expected, rtol=1e-3, atol=1e-6)


def test_virtual_rounds_have_the_noise_of_all_rounds_to_come(tmp_path: Path) -> None:
    config, state = configure(tmp_path, rate=1e-30, split=50.0), begin()
    steps = np.diff(np.array(path_of(config, state), np.float64), axis=0)
    for number, round in ((1, 5), (2, 13), (3, NUM_ROUNDS)):
        deviation = noise_of_round(config, round) * CLIP / COHORT
        expected = deviation * normal(number, steps.shape[1])
        np.testing.assert_allclose(steps[number - 1], expected, rtol=1e-2, atol=1e-6)


def test_the_clipping_norm_matters_in_virtual_federations(tmp_path: Path) -> None:
    loose = configure(tmp_path)
    tight = replace(loose, central_privacy=replace(loose.central_privacy, clip_norm=CLIP / 10))
    lengths = [
        float(np.linalg.norm(found[-1] - found[0]))
        for found in (path_of(loose, begin()), path_of(tight, begin()))
    ]
    assert lengths[1] < lengths[0] / 3


def test_the_split_is_chosen_before_the_first_round_and_then_stays(tmp_path: Path) -> None:
    space = {**SPLITS, "central_privacy.clip_norm": {"low": 1e-3, "high": 10.0, "log": True}}
    options: dict[str, Any] = {"schedule": "interval", "every_rounds": 1, "patience": 0}
    config = configure(tmp_path, sampler="random", space=space, candidates=8, **options)
    tuner, state = Tuner(config, TASK, TASK.cloud_data(), begin().layout, None, 3), begin(0)
    values, searched = [], []
    for _ in range(3):
        given, _ = tuner.next_round(state)
        report = tuner.report["tuner"]
        values.append(given.central_privacy)
        searched.append((report["searched"], report["num_candidates"]))
        metrics = {"round": state.round + 1, "loss_gate": 1.0, "applied": True, **tuner.report}
        state = replace(state, round=state.round + 1, metrics=metrics)
    assert searched == [(True, 16), (True, 5), (True, 5)]
    assert values[0].noise_split != 1.0
    assert {each.noise_split for each in values} == {values[0].noise_split}
    assert tuner.config_of(1).central_privacy == values[0]
    assert tuner.config_of(9) == config


def test_lost_rounds_are_charged_with_the_noise_that_the_tuner_gave_them(tmp_path: Path) -> None:
    config = configure(tmp_path, sampler="random", space=SPLITS)
    config = replace(config, rounds=replace(config.rounds, num_rounds=3, cohort_size=2))
    clients: dict[int, fake_grid.Client] = dict.fromkeys(range(1, 4), fake_grid.honest)
    done = run_federation(fake_grid.FakeGrid(clients), config, task=fake_grid.TinyTask())
    split = done.rounds[1]["tuner"]["values"][SPLIT]
    assert split != 1.0
    (tmp_path / "checkpoints" / "round-000003" / "weights.f32").write_bytes(b"")
    run_federation(fake_grid.FakeGrid(clients), config, task=fake_grid.TinyTask())
    stored = CheckpointStore(tmp_path / "checkpoints").latest()
    assert stored is not None
    chosen = replace(config, central_privacy=replace(config.central_privacy, noise_split=split))
    first, second, third = (noise_of_round(chosen, round) for round in (1, 2, 3))
    assert stored.memory[MEMORY]["spends"] == [[first, 1], [second, 1], [third, 2]]


def test_a_split_cannot_be_tuned_by_real_rounds_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^tuner\.space\.{SPLIT}: is chosen once"):
        configure(tmp_path, sampler="tpe", space=SPLITS, virtual_rounds=0)


@pytest.mark.parametrize("name", ["noise_split", "clip_norm"])
def test_noise_that_there_is_not_cannot_be_tuned(name: str) -> None:
    space = {f"central_privacy.{name}": [1.0, 2.0]}
    with pytest.raises(ConfigError, match=rf"^tuner\.space\.central_privacy\.{name}: changes noth"):
        build(ServerConfig, {"tuner": {"sampler": "tpe", "space": space}})
