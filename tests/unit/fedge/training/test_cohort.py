"""Cohort training against each client trained alone, and what must not depend on the cohort."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedge.errors import ConfigError, TaskError
from fedge.privacy.noise import Draws
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.training.cohort import CohortTrainer
from fedge.training.cohort_contracts import CohortMember, CohortSettings
from fedge.training.local import LocalResult, LocalTrainer
from tests.unit.fedge.training.cohorts import (
    Recurrent,
    Toy,
    Written,
    alone,
    assert_equal,
    cohort,
    examples,
    mixed,
    mlp,
    normed,
    plan,
    random_corrections,
)

HYPER = Hyperparameters(learning_rate=0.1, local_epochs=2, batch_size=4)
METHODS = {
    "sgd": HYPER,
    "momentum": replace(HYPER, momentum=0.8),
    "weight-decay": replace(HYPER, weight_decay=0.05),
    "adam": replace(HYPER, optimizer="adam", learning_rate=0.01, weight_decay=0.01),
    "fedprox": replace(HYPER, client_term="fedprox", proximal_mu=0.7, momentum=0.5),
    "scaffold": replace(HYPER, client_term="scaffold", weight_decay=0.01),
}
EVEN, RAGGED = (8,) * 5, (1, 9, 8, 3, 4, 17, 2, 8)
MODELS = [mlp, mixed, Written, normed]
STACKED = CohortSettings(backend="stacked")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("private", [False, True], ids=["plain", "dp"])
@pytest.mark.parametrize("sizes", [EVEN, RAGGED], ids=["even", "ragged"])
@pytest.mark.parametrize("method", METHODS)
def test_stacked_training_equals_each_client_alone(
    model: Callable[[], nn.Module], private: bool, sizes: tuple[int, ...], method: str
) -> None:
    task, hyper = Toy(model=model), METHODS[method]
    local, trainer = LocalTrainer(task), CohortTrainer(task, STACKED)
    plans = [
        plan(size, num_steps=3 + at % 4, clip_norm=0.3 + 0.2 * at) if private else None
        for at, size in enumerate(sizes)
    ]
    corrections = random_corrections(local.layout, len(sizes)) if method == "scaffold" else None
    parent = local.initial_weights(0)
    found = trainer.train(parent, cohort(sizes, plans, corrections), hyper)
    assert_equal(found, alone(local, parent, cohort(sizes, plans, corrections), hyper))
    assert trainer.backend_name(hyper, private=private) == "stacked"


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 21), min_size=1, max_size=7),
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 3),
    private=st.booleans(),
)
def test_any_sizes_and_batches_equal_each_client_alone(
    sizes: list[int], batch_size: int, epochs: int, private: bool
) -> None:
    hyper = replace(HYPER, batch_size=batch_size, local_epochs=epochs, momentum=0.3)
    local, trainer = LocalTrainer(Toy()), CohortTrainer(Toy(), STACKED)
    plans = [plan(size) if private else None for size in sizes]
    parent = local.initial_weights(1)
    found = trainer.train(parent, cohort(sizes, plans), hyper)
    assert_equal(found, alone(local, parent, cohort(sizes, plans), hyper))


@pytest.mark.parametrize("backend", ["stacked", "fused", "sequential"])
@pytest.mark.parametrize("private", [False, True], ids=["plain", "dp"])
def test_a_client_draws_no_more_and_no_less_than_alone(backend: str, private: bool) -> None:
    plans = [plan(size) if private else None for size in RAGGED]
    ours, theirs = cohort(RAGGED, plans), cohort(RAGGED, plans)
    local = LocalTrainer(Toy())
    parent = local.initial_weights(0)
    trainer = CohortTrainer(Toy(), CohortSettings(backend=backend))
    assert_equal(trainer.train(parent, ours, HYPER), alone(local, parent, theirs, HYPER))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.draws.uniform(2), other.draws.uniform(2))


def test_members_with_and_without_a_plan_share_a_call() -> None:
    plans = [plan(size) if at % 2 else None for at, size in enumerate(RAGGED)]
    local, trainer = LocalTrainer(Toy()), CohortTrainer(Toy(), STACKED)
    parent = local.initial_weights(0)
    found = trainer.train(parent, cohort(RAGGED, plans), HYPER)
    assert_equal(found, alone(local, parent, cohort(RAGGED, plans), HYPER))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("private", [False, True], ids=["plain", "dp"])
def test_bfloat16_differs_from_float32_by_less_than_its_tolerance(
    model: Callable[[], nn.Module], private: bool
) -> None:
    task = Toy(model=model)
    hyper = replace(HYPER, learning_rate=0.0025)
    local = LocalTrainer(task)
    trainer = CohortTrainer(task, CohortSettings(backend="stacked", precision="bfloat16"))
    plans = [plan(size) if private else None for size in RAGGED]
    parent = local.initial_weights(0)
    found = trainer.train(parent, cohort(RAGGED, plans), hyper)
    expected = alone(local, parent, cohort(RAGGED, plans), hyper)
    assert_equal(found, expected, tolerance=1e-3)
    change = [result.delta for result in expected if isinstance(result, LocalResult)]
    assert np.abs(change).max() > 2e-3  # the tolerance is not met by doing nothing


@pytest.mark.parametrize("private", [False, True], ids=["plain", "dp"])
def test_a_result_is_the_same_to_the_bit_in_any_company(private: bool) -> None:
    task = Toy(model=lambda: nn.Sequential(nn.Linear(12, 16), nn.Sigmoid(), nn.Linear(16, 5)))
    sizes = [5 + 7 * at % 23 for at in range(40)]
    plans = [plan(size) if private else None for size in sizes]
    trainer = CohortTrainer(task, STACKED)
    parent = LocalTrainer(task).initial_weights(0)
    whole = trainer.train(parent, cohort(sizes, plans), HYPER)
    turned = trainer.train(parent, cohort(sizes, plans)[::-1], HYPER)[::-1]
    parts = [trainer.train(parent, [member], HYPER)[0] for member in cohort(sizes, plans)]
    tight = CohortTrainer(task, replace(STACKED, memory_mib=1))
    chunks = tight.train(parent, cohort(sizes, plans), HYPER)
    for others in (turned, parts, chunks):
        for one, other in zip(whole, others, strict=True):
            assert isinstance(one, LocalResult)
            assert isinstance(other, LocalResult)
            assert np.array_equal(one.delta, other.delta)


def bad_members() -> list[CohortMember]:
    """Return good members between ones that each break training in another way."""
    members = cohort(RAGGED)
    broken = [examples(8, seed) for seed in range(4)]
    broken[0].inputs[3, 1] = math.nan
    broken[1].inputs[5] = 3e38
    none = Examples(np.zeros((0, 12), np.float32), np.zeros(0, np.int64))
    members[1] = replace(members[1], examples=broken[0])
    members[3] = replace(members[3], examples=broken[1])
    members[4] = replace(members[4], examples=none)
    members[6] = replace(members[6], correction=np.zeros(3, np.float32))
    return members


@pytest.mark.parametrize("backend", ["auto", "stacked", "fused", "sequential"])
def test_a_bad_member_fails_in_the_words_of_local_training_and_harms_no_other(
    backend: str,
) -> None:
    local = LocalTrainer(Toy())
    parent = local.initial_weights(0)
    found = CohortTrainer(Toy(), CohortSettings(backend=backend)).train(
        parent, bad_members(), HYPER
    )
    assert_equal(found, alone(local, parent, bad_members(), HYPER))
    kinds = [type(outcome) for outcome in found]
    assert [at for at, kind in enumerate(kinds) if kind is TaskError] == [1, 3, 4, 6]


def test_an_example_whose_gradient_overflows_under_dp_is_named() -> None:
    def members() -> list[CohortMember]:
        plans = [plan(8, rate=1.0)] * 3
        good, bad, other = cohort((8, 8, 8), plans)
        bad.examples.inputs[5] = 3e38
        return [good, bad, other]

    local = LocalTrainer(Toy())
    parent = local.initial_weights(0)
    found = CohortTrainer(Toy(), STACKED).train(parent, members(), HYPER)
    assert_equal(found, alone(local, parent, members(), HYPER))
    assert "example 5 has a non-finite gradient in step 1" in str(found[1])


def test_training_that_diverges_fails_for_that_member_alone() -> None:
    def members() -> list[CohortMember]:
        kept = cohort((4, 4, 4))
        kept[1].examples.inputs[:] *= 1e18
        return kept

    hyper = replace(HYPER, learning_rate=1e25, local_epochs=1)
    local = LocalTrainer(Toy())
    parent = local.initial_weights(0)
    found = CohortTrainer(Toy(), STACKED).train(parent, members(), hyper)
    assert isinstance(found[1], TaskError)
    assert "training diverged" in str(found[1])
    assert [type(one) for one in found] == [
        type(one) for one in alone(local, parent, members(), hyper)
    ]


def test_a_member_whose_labels_break_the_loss_is_found_and_left_out() -> None:
    members = cohort(RAGGED)
    members[5].examples.targets[2] = 99
    local = LocalTrainer(Toy())
    parent = local.initial_weights(0)
    found = CohortTrainer(Toy(), STACKED).train(parent, members, HYPER)
    assert isinstance(found[5], TaskError)
    assert "training failed: IndexError" in str(found[5])
    del members[5], found[5]
    again = cohort(RAGGED)
    del again[5]
    assert_equal(found, alone(local, parent, again, HYPER))


def test_weights_that_cannot_be_used_are_refused_for_all() -> None:
    trainer = CohortTrainer(Toy(), STACKED)
    with pytest.raises(TaskError, match="do not fit the task's model"):
        trainer.train(np.zeros(3, np.float32), cohort(EVEN), HYPER)
    broken = np.full(trainer.layout.size, np.nan, np.float32)
    with pytest.raises(TaskError, match="global weights are not finite"):
        trainer.train(broken, cohort(EVEN), HYPER)


def test_nothing_to_train_is_no_error() -> None:
    trainer = CohortTrainer(Toy(), STACKED)
    assert trainer.train(LocalTrainer(Toy()).initial_weights(0), [], HYPER) == []


def test_a_client_whose_noise_would_not_fit_is_trained_alone() -> None:
    plans = [plan(8), plan(8, num_steps=600), plan(8)]
    local = LocalTrainer(Toy())
    parent = local.initial_weights(0)
    trainer = CohortTrainer(Toy(), replace(STACKED, memory_mib=1))
    found = trainer.train(parent, cohort((8, 8, 8), plans), HYPER)
    assert_equal(found, alone(local, parent, cohort((8, 8, 8), plans), HYPER))


def test_frozen_weights_stay_as_they_are() -> None:
    def model() -> nn.Module:
        layers = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
        layers[0].requires_grad_(False)
        return layers

    task = Toy(model=model)
    local = LocalTrainer(task)
    for seed in (0, 1):  # what is frozen comes from the server, too
        parent = local.initial_weights(seed)
        found = CohortTrainer(task, STACKED).train(parent, cohort(RAGGED), HYPER)
        assert_equal(found, alone(local, parent, cohort(RAGGED), HYPER))


def test_layers_that_work_in_place_are_taken() -> None:
    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(12, 8),
            nn.ELU(inplace=True),
            nn.Linear(8, 5),
            nn.ReLU6(inplace=True),
        )

    local = LocalTrainer(Toy(model=model))
    parent = local.initial_weights(0)
    found = CohortTrainer(Toy(model=model), STACKED).train(parent, cohort(RAGGED), HYPER)
    assert_equal(found, alone(local, parent, cohort(RAGGED), HYPER))


class Idle(nn.Module):
    """A model with a layer that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(12, 5), nn.Linear(2, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.used(inputs)
        return outputs


def test_a_parameter_that_takes_no_part_is_not_decayed_and_not_trained_privately() -> None:
    task = Toy(model=Idle)
    local, hyper = LocalTrainer(task), replace(HYPER, weight_decay=0.5)
    parent = local.initial_weights(0)
    trainer = CohortTrainer(task)
    assert_equal(
        trainer.train(parent, cohort(RAGGED), hyper), alone(local, parent, cohort(RAGGED), hyper)
    )
    plans = [plan(8)] * 2
    found = trainer.train(parent, cohort((8, 8), plans), hyper)
    assert_equal(found, alone(local, parent, cohort((8, 8), plans), hyper))
    assert "takes no part" in str(found[0])


def test_read_only_and_strided_arrays_are_taken() -> None:
    def members() -> list[CohortMember]:
        kept = cohort((16, 8))
        every_second = Examples(kept[0].examples.inputs[::2], kept[0].examples.targets[::2])
        for array in (kept[1].examples.inputs, kept[1].examples.targets):
            array.flags.writeable = False
        return [replace(kept[0], examples=every_second), kept[1]]

    local = LocalTrainer(Toy())
    parent = local.initial_weights(0)
    found = CohortTrainer(Toy(), STACKED).train(parent, members(), HYPER)
    assert_equal(found, alone(local, parent, members(), HYPER))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_results_are_those_of_the_cpu(method: str) -> None:
    local, hyper = LocalTrainer(Toy()), replace(METHODS[method], local_epochs=5)
    trainer = CohortTrainer(Toy(), replace(STACKED, device="cuda"))
    parent = local.initial_weights(0)
    found = trainer.train(parent, cohort(RAGGED), hyper)
    assert_equal(found, alone(local, parent, cohort(RAGGED), hyper), tolerance=1e-4)


def test_a_model_that_vmap_cannot_take_is_refused_by_name_and_trained_by_auto() -> None:
    task = Toy(model=Recurrent)
    local = LocalTrainer(task)
    parent = local.initial_weights(0)
    with pytest.raises(TaskError, match=r"'stacked' cannot train this: .*gru"):
        CohortTrainer(task, STACKED).train(parent, cohort(EVEN), HYPER)
    found = CohortTrainer(task).train(parent, cohort(EVEN), HYPER)
    assert_equal(found, alone(local, parent, cohort(EVEN), HYPER))


def test_an_unknown_backend_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"no cohort backend is called 'warp'.*sequential"):
        CohortTrainer(Toy(), CohortSettings(backend="warp"))


def test_secure_draws_are_taken_too() -> None:
    trainer = CohortTrainer(Toy(), STACKED)
    parent = LocalTrainer(Toy()).initial_weights(0)
    members = [CohortMember(examples(8), Draws.secure(), plan(8)) for _ in range(2)]
    first, second = trainer.train(parent, members, HYPER)
    assert isinstance(first, LocalResult)
    assert isinstance(second, LocalResult)
    assert not np.allclose(first.delta, second.delta)


@pytest.mark.parametrize("private", [False, True], ids=["plain", "dp"])
@pytest.mark.parametrize("term", ["none", "fedprox"])
@pytest.mark.parametrize("backend", ["sequential", "stacked", "fused", "auto"])
def test_members_that_start_from_weights_of_their_own_are_trained_as_alone_from_them(
    backend: str, private: bool, term: str, caplog: pytest.LogCaptureFixture
) -> None:
    hyper = replace(HYPER, client_term=term)
    task = Toy()
    local, trainer = LocalTrainer(task), CohortTrainer(task, CohortSettings(backend=backend))
    parent = local.initial_weights(1)
    starts = [None if at % 3 == 1 else local.initial_weights(at + 5) for at in range(len(RAGGED))]

    def members() -> list[CohortMember]:
        plans = [plan(size) for size in RAGGED] if private else None
        each = zip(cohort(RAGGED, plans), starts, strict=True)
        return [replace(member, start=start) for member, start in each]

    with caplog.at_level(logging.INFO, "fedge.training.cohort"):
        found = trainer.train(parent, members(), hyper)
        trainer.train(parent, members(), hyper)
    expected = [
        alone(local, parent if member.start is None else member.start, [member], hyper)[0]
        for member in members()
    ]
    assert_equal(found, expected)
    said = [each for each in caplog.messages if "are trained by 'sequential'" in each]
    assert len(said) == (0 if term == "none" else 1)


def test_a_start_that_does_not_fit_is_its_members_own_error() -> None:
    trainer, parent = CohortTrainer(Toy(), STACKED), LocalTrainer(Toy()).initial_weights(1)
    broken = (np.full(parent.size, np.nan, np.float32), parent[:-1])
    members = [
        replace(each, start=start) for each, start in zip(cohort((4, 4)), broken, strict=True)
    ]
    *failed, whole = trainer.train(parent, [*members, *cohort((4,))], HYPER)
    assert [type(outcome) for outcome in failed] == [TaskError, TaskError]
    assert isinstance(whole, LocalResult)
