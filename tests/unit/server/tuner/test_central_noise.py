"""Central privacy in virtual federations: clipping, and the noise of a real cohort's mean."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.config import build
from fedge.errors import ConfigError
from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.rng import stream, stream_seed
from fedge.training.local import LocalTrainer
from server.central_privacy import noise_by_round, noise_of_round
from server.checkpoint import Checkpoint
from server.settings import ServerConfig
from server.tuner.federation import VirtualFederation
from server.tuner.pseudo_clients import draw_clients, proxy_parts
from tests.tiny_task import TinyTask

TASK = TinyTask()
SEED = 5
CLIP, NOISE, COHORT, NUM_ROUNDS = 0.02, 1.5, 30, 21
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


def with_split(config: ServerConfig, split: float) -> ServerConfig:
    return replace(config, central_privacy=replace(config.central_privacy, noise_split=split))


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
    draws = Draws.seeded(stream_seed(stream_seed(SEED, "tuner"), f"central-0-{number}", round=5))
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
    noise = np.array([noise_of_round(config, round) for round in (7, 13, 19)])
    # Seventeen rounds are to come; three of them are not quite like all.
    noise *= np.sqrt(np.mean(noise**-2.0) / np.mean(noise_by_round(config)[4:] ** -2.0))
    for number, multiplier in enumerate(noise, start=1):
        expected = multiplier * CLIP / COHORT * normal(number, steps.shape[1])
        np.testing.assert_allclose(steps[number - 1], expected, rtol=1e-2, atol=1e-6)


def test_the_clipping_norm_matters_in_virtual_federations(tmp_path: Path) -> None:
    loose = configure(tmp_path)
    tight = replace(loose, central_privacy=replace(loose.central_privacy, clip_norm=CLIP / 10))
    lengths = [
        float(np.linalg.norm(found[-1] - found[0]))
        for found in (path_of(loose, begin()), path_of(tight, begin()))
    ]
    assert lengths[1] < lengths[0] / 3


def test_candidates_that_differ_in_their_split_get_the_same_draws(tmp_path: Path) -> None:
    config, state = configure(tmp_path, rate=1e-30), begin()
    splits = [1.0, 50.0]
    made = VirtualFederation(TASK, config, TASK.cloud_data(), SEED)
    trials = made.open(state, [with_split(config, split) for split in splits])
    made.advance(trials, 1)
    steps = [trial.path[0] - state.weights for trial in trials]
    ratio = steps[1] / steps[0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-2)
    assert ratio[0] > 1.5


@given(
    split=st.floats(1e-4, 1e4),
    virtual_rounds=st.integers(1, 12),
    num_rounds=st.integers(5, 60),
)
def test_however_noise_is_split_virtual_rounds_cost_what_real_ones_to_come_do(
    split: float, virtual_rounds: int, num_rounds: int
) -> None:
    config = configure(Path("unused"), split=split, virtual_rounds=virtual_rounds)
    config = replace(config, rounds=replace(config.rounds, num_rounds=num_rounds))
    made = VirtualFederation(TASK, config, TASK.cloud_data(), SEED)
    (trial,) = made.open(begin(), [config])
    drawn = [
        noise_of_round(trial.config, made._stands_for(number, num_rounds)) * COHORT / 3
        for number in range(1, virtual_rounds + 1)
    ]
    to_come = noise_by_round(config)[4:]
    np.testing.assert_allclose(np.mean(np.power(drawn, -2)), np.mean(to_come**-2.0))


def test_a_space_of_cohort_sizes_need_not_hold_the_number_of_pseudo_clients(tmp_path: Path) -> None:
    space = {"rounds.cohort_size": [20, COHORT]}
    config = configure(tmp_path, sampler="random", space=space)
    assert len(path_of(config, begin())) == 4


def test_the_clipping_of_noise_that_there_is_not_cannot_be_tuned() -> None:
    space = {"central_privacy.clip_norm": [1.0, 2.0]}
    with pytest.raises(
        ConfigError, match=r"^tuner\.space\.central_privacy\.clip_norm: changes noth"
    ):
        build(ServerConfig, {"tuner": {"sampler": "tpe", "space": space}})
