"""Virtual federations against FedAvg written out, client by client."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.config import build
from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.rng import stream, stream_seed
from fedge.task import CloudData, Examples
from fedge.training.local import LocalTrainer
from server.checkpoint import Checkpoint
from server.settings import ServerConfig
from server.tuner.federation import VirtualFederation
from server.tuner.pseudo_clients import draw_clients, proxy_parts
from tests.tiny_task import TinyTask

TASK = TinyTask()
SEED = 5
TUNER = {"clients": 3, "client_examples": 12, "virtual_rounds": 2}


def begin() -> Checkpoint:
    trainer = LocalTrainer(TASK)
    return Checkpoint("run", 4, trainer.layout, trainer.initial_weights(0), seed=SEED)


def configure(train: dict[str, Any] | None = None, **sections: Any) -> ServerConfig:
    wanted = {"learning_rate": 0.3, "local_epochs": 2, "batch_size": 4, **(train or {})}
    return build(ServerConfig, {"train": wanted, **sections})


def federation(run_dir: Path, data: CloudData | None = None, **tuner: Any) -> VirtualFederation:
    config = build(ServerConfig, {"run_dir": str(run_dir), "tuner": {**TUNER, **tuner}})
    return VirtualFederation(TASK, config, data or TASK.cloud_data(), SEED)


def weights_after(
    made: VirtualFederation, configs: list[ServerConfig], rounds: int = 2
) -> list[Vector | None]:
    trials = made.open(begin(), configs)
    for number in range(1, rounds + 1):
        made.advance(trials, number)
    return [None if trial.state is None else trial.state.weights for trial in trials]


def fedavg(config: ServerConfig, rounds: int = 2) -> Vector:
    seed = stream_seed(SEED, "tuner")
    fit, _ = proxy_parts(TASK.cloud_data().proxy, ServerConfig())
    clients = draw_clients(fit, 3, 12, 1.0, stream(seed, "clients", round=5))
    num_examples = sum(map(len, clients))
    trainer, weights = LocalTrainer(TASK), begin().weights
    for number in range(1, rounds + 1):
        total = np.zeros(len(weights), np.float64)
        for client, examples in enumerate(clients):
            draws = Draws.seeded(stream_seed(seed, f"draws-{number}", round=5, client=client))
            delta = trainer.train(weights, examples, config.train, draws=draws).delta
            total += len(examples) / num_examples * delta.astype(np.float64)
        rate = config.aggregation.learning_rate
        weights = (weights + rate * total).astype(np.float32)
    return weights


@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_virtual_rounds_are_fedavg_from_the_current_weights(tmp_path: Path, rate: float) -> None:
    config = configure({"learning_rate": rate}, aggregation={"learning_rate": 0.7})
    # Another candidate beside it must not matter.
    _, found = weights_after(federation(tmp_path), [configure({"learning_rate": 0.1}), config])
    assert found is not None
    np.testing.assert_allclose(found, fedavg(config), rtol=1e-4, atol=1e-5)


def test_gate_and_test_set_are_not_looked_at(tmp_path: Path) -> None:
    class Untouchable(Examples):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    real = TASK.cloud_data()
    locked = object.__new__(Untouchable)
    made = federation(tmp_path, CloudData(real.proxy, locked, locked))
    (found,) = weights_after(made, [configure()])
    assert found is not None
    assert len(made.losses(found)) == 10


def test_held_out_losses_are_those_of_the_part_that_nobody_trains_on(tmp_path: Path) -> None:
    _, held = proxy_parts(TASK.cloud_data().proxy, ServerConfig())
    weights = begin().weights
    expected = LocalTrainer(TASK).losses(weights, held)
    np.testing.assert_array_equal(federation(tmp_path).losses(weights), expected)


def test_a_candidate_that_diverges_is_out_and_harms_no_other(tmp_path: Path) -> None:
    wild = configure({"learning_rate": 3e38})
    good, diverged = weights_after(federation(tmp_path), [configure(), wild])
    assert diverged is None
    assert good is not None
    (alone,) = weights_after(federation(tmp_path), [configure()])
    np.testing.assert_array_equal(good, alone)


def test_candidates_that_differ_on_the_server_alone_train_once(tmp_path: Path) -> None:
    made = federation(tmp_path)
    configs = [configure(aggregation={"learning_rate": rate}) for rate in (0.5, 1.0)]
    slow, fast = weights_after(made, configs, rounds=1)
    start = begin().weights
    assert slow is not None
    assert fast is not None
    np.testing.assert_allclose(2 * (slow - start), fast - start, atol=1e-6)
    assert made.passes == 2 * 3 * 12  # two epochs of three clients


def test_a_client_has_at_most_half_of_what_is_trained_on(tmp_path: Path) -> None:
    made = federation(tmp_path, client_examples=100, alpha=0.0)
    weights_after(made, [configure({"local_epochs": 1})], rounds=1)
    assert made.passes == 3 * 15  # 30 of the 40 proxy examples are trained on


def test_a_trial_keeps_the_weights_after_each_round(tmp_path: Path) -> None:
    made = federation(tmp_path)
    (trial,) = made.open(begin(), [configure()])
    for number in (1, 2):
        made.advance([trial], number)
    assert trial.state is not None
    assert len(trial.path) == 2
    np.testing.assert_array_equal(trial.path[-1], trial.state.weights)
    assert np.linalg.norm(trial.path[0] - trial.path[1]) > 0


def test_the_codec_and_the_state_of_the_server_optimiser_count(tmp_path: Path) -> None:
    coarse = configure(aggregation={"codec": "topk:0.1+f16"})
    plain, coded = weights_after(federation(tmp_path), [configure(), coarse])
    assert plain is not None
    assert coded is not None
    assert 0 < np.linalg.norm(plain - coded) < np.linalg.norm(plain - begin().weights)


def test_pseudo_clients_train_with_noise_where_devices_do(tmp_path: Path) -> None:
    configs = [configure({"clip_norm": norm}) for norm in (0.01, 1.0)]
    plain = weights_after(federation(tmp_path), configs)
    np.testing.assert_array_equal(plain[0], plain[1])
    noisy = weights_after(federation(tmp_path, noise_multiplier=1.0), configs)
    assert noisy[0] is not None
    assert noisy[1] is not None
    assert np.linalg.norm(noisy[0] - noisy[1]) > 0.01
