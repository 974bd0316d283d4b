"""Our side of the speed benchmarks: the same work as the peers', through the product."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.our_engine import PRIVATE, config_of, run_ours
from benchmarks.peers import bare_loop
from benchmarks.peers.work import Work, data_of
from benchmarks.tasks.small_models import SmallModel
from fedge.privacy.planning import plan_round
from fedge.training.local import LocalTrainer
from server.checkpoint import CheckpointStore
from simulation.runner import simulate

TINY = Work("mlp", num_clients=4, num_examples=20, num_rounds=3)


def test_a_round_comes_to_what_the_bare_loop_comes_to(tmp_path: Path) -> None:
    # One batch of everything, so that the order of examples does not matter.
    work = Work("mlp", num_clients=4, num_examples=20, num_rounds=1, batch_size=20)
    task = SmallModel("mlp", 4, 20)
    rounds = simulate(config_of(work, tmp_path), task=task).rounds
    assert (rounds[1]["num_accepted"], rounds[1]["evaluation"]) == (4, None)
    last = CheckpointStore(tmp_path / "checkpoints").latest()
    assert last is not None
    trainer = LocalTrainer(task)
    begin = trainer.layout.views(trainer.initial_weights(0))
    names = [name for name, _ in task.build_model().named_parameters()]
    weights = [torch.from_numpy(begin[name].copy()) for name in names]
    sums = bare_loop.train_share(work, range(4), weights)
    after = trainer.layout.views(last.weights)
    for name, total in zip(names, sums, strict=True):
        np.testing.assert_allclose(after[name], total.numpy() / 4, atol=1e-5)
        assert np.abs(after[name] - begin[name]).max() > 1e-4


def test_private_rounds_sample_as_opacus_does(tmp_path: Path) -> None:
    for work in (Work("mlp", 4, 80, 2, mode=PRIVATE), Work("cnn", 4, 60, 2, mode=PRIVATE)):
        config = config_of(work, tmp_path)
        plan = plan_round(
            config.privacy, config.server.train, work.num_examples, noise_multiplier=1.0
        )
        assert plan.sampling_rate == pytest.approx(10 / work.num_examples)
        assert plan.num_steps == work.num_examples // 10
        assert config.privacy.noise_multiplier == plan.clip_norm == 1.0


def test_plain_rounds_are_not_private(tmp_path: Path) -> None:
    assert not config_of(TINY, tmp_path).privacy.enabled


def test_clients_hold_the_very_examples_of_the_peers() -> None:
    task = SmallModel("cnn", 3, 10)
    inputs, targets = data_of(Work("cnn", 3, 10, 1))
    examples = task.client_data(2, 3)
    assert np.array_equal(examples.inputs, inputs[2].numpy())
    assert np.array_equal(examples.targets, targets[2].numpy())
    assert not np.array_equal(examples.inputs, task.client_data(1, 3).inputs)


@pytest.mark.parametrize("mode", ["", PRIVATE])
def test_every_round_but_the_first_is_timed(mode: str) -> None:
    work = Work("mlp", num_clients=4, num_examples=20, num_rounds=3, mode=mode)
    seconds = run_ours(work)
    assert len(seconds) == work.num_rounds - 1
    assert min(seconds) > 0
