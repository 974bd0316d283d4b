"""A training that is cut off anywhere and goes on from what was kept, against one that was not."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.training.local import LocalResult, LocalTrainer
from fedge.training.progress import Progress
from fedge.training.snapshot import Snapshot
from tests.tiny_task import TinyTask

TASK = TinyTask(num_client=26)
EXAMPLES = TASK.client_data(0, 1)
ONE_EPOCH = Hyperparameters(learning_rate=0.1, local_epochs=1, batch_size=4)
NUM_STEPS = 7
OPTIMIZERS = {
    "sgd": ONE_EPOCH,
    "momentum": replace(ONE_EPOCH, momentum=0.9),
    "adam": replace(ONE_EPOCH, optimizer="adam", learning_rate=0.01),
    "fedprox": replace(ONE_EPOCH, client_term="fedprox", proximal_mu=1.0),
}


class Cut(Exception):
    """The process is killed here."""


@dataclass
class Memory:
    """Keeps bytes, as a file would, and can be cut off before it does."""

    content: bytes | None = None
    num_kept: int = 0
    cut_at: int | None = None

    def recall(self) -> Snapshot | None:
        return None if self.content is None else Snapshot.from_bytes(self.content)

    def keep(self, snapshot: Snapshot) -> None:
        if self.cut_at == self.num_kept:
            self.cut_at = None
            raise Cut
        self.num_kept += 1
        self.content = snapshot.to_bytes()


def start() -> Vector:
    return LocalTrainer(TASK).initial_weights(0)


def train(
    hyper: Hyperparameters,
    seed: int,
    *,
    memory: Memory | None = None,
    examples: Examples = EXAMPLES,
    should_stop: Callable[[], bool] | None = None,
) -> LocalResult:
    return LocalTrainer(TASK).train(
        start(),
        examples,
        hyper,
        draws=Draws.seeded(seed),
        keeper=memory,
        should_stop=should_stop,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("cut_at", range(NUM_STEPS))
def test_a_training_that_was_cut_off_ends_with_the_same_bits(name: str, cut_at: int) -> None:
    hyper = OPTIMIZERS[name]
    whole = train(hyper, 1)
    memory = Memory(cut_at=cut_at)
    with pytest.raises(Cut):
        train(hyper, 1, memory=memory)
    # Other draws: where nothing was kept yet the epoch begins anew, else its order is remembered.
    resumed = train(hyper, 1 if cut_at == 0 else 2, memory=memory)
    assert resumed.num_steps == whole.num_steps == NUM_STEPS
    assert memory.num_kept == NUM_STEPS
    np.testing.assert_array_equal(resumed.delta, whole.delta)
    assert resumed.loss == pytest.approx(whole.loss)


def test_keeping_steps_changes_nothing() -> None:
    np.testing.assert_array_equal(
        train(OPTIMIZERS["momentum"], 1, memory=Memory()).delta,
        train(OPTIMIZERS["momentum"], 1).delta,
    )


def test_a_training_stopped_again_and_again_sees_each_epoch_whole() -> None:
    hyper = replace(ONE_EPOCH, local_epochs=3)
    memory = Memory()
    for seed, steps in enumerate([1, 5, 2, 9, 100]):
        left = itertools.chain(itertools.repeat(False, steps), itertools.repeat(True))
        result = train(hyper, seed, memory=memory, should_stop=partial(next, left))
    snapshot = memory.recall()
    assert snapshot is not None
    assert result.num_steps == 3 * NUM_STEPS
    assert snapshot.progress.num_examples == 3 * len(EXAMPLES)


def test_samples_that_came_meanwhile_leave_the_number_of_steps_as_it_was() -> None:
    memory = Memory(cut_at=3)
    with pytest.raises(Cut):
        train(ONE_EPOCH, 1, memory=memory)
    more = TinyTask(num_client=40).client_data(0, 1)
    assert train(ONE_EPOCH, 2, memory=memory, examples=more).num_steps == NUM_STEPS
    fewer = EXAMPLES.subset(np.arange(5))
    memory = Memory(cut_at=3)
    with pytest.raises(Cut):
        train(ONE_EPOCH, 1, memory=memory)
    assert train(ONE_EPOCH, 2, memory=memory, examples=fewer).num_steps >= 4


def test_a_snapshot_of_another_model_is_not_used() -> None:
    other = Snapshot.from_bytes(
        Snapshot(Progress(3, 12, 1.0), {"model.0.weight": np.zeros((2, 2), np.float32)}).to_bytes()
    )
    memory = Memory(other.to_bytes())
    assert train(ONE_EPOCH, 1, memory=memory).num_steps == NUM_STEPS


def test_bytes_are_read_back_as_they_were() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3.0)}
    snapshot = Snapshot(Progress(3, 12, 1.0), arrays, 2, np.array([4, 1], np.int64), 77)
    read = Snapshot.from_bytes(snapshot.to_bytes())
    assert read.progress == snapshot.progress
    assert (read.epoch, read.examples) == (2, 77)
    np.testing.assert_array_equal(read.left, [4, 1])
    for name, array in arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array)
        assert read.arrays[name].dtype == array.dtype


@pytest.mark.parametrize("size", [0, 3, 20, -1])
def test_bytes_that_were_cut_short_are_refused(size: int) -> None:
    content = Snapshot(Progress(3, 12, 1.0), {"a": np.ones(5, np.float32)}).to_bytes()
    with pytest.raises((ValueError, KeyError, TypeError)):
        Snapshot.from_bytes(content[:size])


class Flat(TinyTask):
    """A task whose gradients are zero, so that what DP-SGD adds up is its noise alone."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0 * outputs.sum(dim=1)


@dataclass(frozen=True)
class Noise(Draws):
    """Draws all examples, and noise that is noted; may be cut off in the middle of a step."""

    drawn: list[Tensor] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)

    def normal(self, size: int) -> Tensor:
        self.drawn.append(
            torch.from_numpy(np.random.default_rng(len(self.drawn)).normal(size=size))
        )
        if len(self.drawn) in self.cuts:
            raise Cut
        return self.drawn[-1]


@pytest.mark.parametrize("cuts", [(), (1,), (3,), (2, 3, 8), (1, 2, 4, 5, 9)])
def test_noise_of_a_lost_step_is_in_nothing_that_is_released(cuts: tuple[int, ...]) -> None:
    plan = DpPlan(1.5, 0.5, 6, 2.0, 1e-5, 16.0)
    trainer, memory = LocalTrainer(Flat(num_client=26)), Memory()
    draws = Noise(lambda size: torch.zeros(size, dtype=torch.float64), private=False, cuts=[*cuts])
    parent = trainer.initial_weights(0)
    hyper = Hyperparameters(learning_rate=0.5)
    for _ in cuts:
        with pytest.raises(Cut):
            trainer.train(parent, EXAMPLES, hyper, draws=draws, plan=plan, keeper=memory)
    result = trainer.train(parent, EXAMPLES, hyper, draws=draws, plan=plan, keeper=memory)
    released = [noise for n, noise in enumerate(draws.drawn, start=1) if n not in cuts]
    assert len(released) == result.num_steps == plan.num_steps
    total = torch.stack(released).sum(0).numpy() * plan.noise_multiplier * plan.clip_norm
    expected = -hyper.learning_rate * total / plan.expected_batch
    np.testing.assert_allclose(result.delta, expected, atol=1e-5)
