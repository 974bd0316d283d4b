"""Fused training against each client trained alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedge.errors import TaskError
from fedge.params import Layout
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.training.cohort_contracts import CohortMember
from fedge.training.fused import group as fused_group
from fedge.training.local import LocalResult, LocalTrainer
from tests.unit.fedge.training.cohorts import alone, assert_equal, plan, random_corrections
from tests.unit.fedge.training.fused.chains import (
    NUM_CLASSES,
    Images,
    LeNet,
    cnn,
    images,
    members,
    partly_frozen,
    smooth,
    train,
)

HYPER = Hyperparameters(learning_rate=0.1, local_epochs=2, batch_size=4)
METHODS = {
    "sgd": HYPER,
    "momentum": replace(HYPER, momentum=0.8),
    "weight-decay": replace(HYPER, weight_decay=0.05, momentum=0.3),
    "adam": replace(HYPER, optimizer="adam", learning_rate=0.01, weight_decay=0.01),
    "fedprox": replace(HYPER, client_term="fedprox", proximal_mu=0.7, momentum=0.5),
    "scaffold": replace(HYPER, client_term="scaffold", weight_decay=0.01),
}
MODELS = [cnn, LeNet, smooth, partly_frozen]
SIZES = (9, 1, 8, 17, 8, 6)


def cohort(method: str, private: bool, layout: Layout) -> list[CohortMember]:
    corrections = random_corrections(layout, len(SIZES))
    return [
        replace(
            member,
            plan=plan(len(member.examples)) if private else None,
            correction=corrections[at] if method == "scaffold" else None,
        )
        for at, member in enumerate(members(SIZES))
    ]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("private", [False, True], ids=["plain", "dp"])
@pytest.mark.parametrize("method", METHODS)
def test_training_equals_each_client_alone(
    model: Callable[[], nn.Module], private: bool, method: str
) -> None:
    task, hyper, local = Images(model=model), METHODS[method], LocalTrainer(Images(model=model))
    found = train(task, cohort(method, private, local.layout), hyper)
    again = cohort(method, private, local.layout)
    assert_equal(found, alone(local, local.initial_weights(0), again, hyper))


def pooled_chain(
    channels: int, out: int, kernel: int, padding: int, bias: bool, pool: int
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, out, kernel, padding=padding, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(pool),
            nn.Flatten(),
            nn.LazyLinear(NUM_CLASSES),
        )

    def built() -> nn.Module:
        model = build()
        model(torch.zeros(1, channels, 9, 10))
        return model

    return built


@given(
    channels=st.integers(1, 3),
    out=st.sampled_from([1, 5, 16]),
    kernel=st.integers(1, 4),
    padding=st.integers(0, 3),
    bias=st.booleans(),
    pool=st.integers(2, 3),
    private=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_pooled_convolution_equals_autograd(
    channels: int, out: int, kernel: int, padding: int, bias: bool, pool: int, private: bool
) -> None:
    task = Images(model=pooled_chain(channels, out, kernel, padding, bias, pool))
    shape = (channels, 9, 10)
    hyper = replace(HYPER, local_epochs=1)
    plans = plan(5, num_steps=2, rate=0.6) if private else None
    given_members = [replace(member, plan=plans) for member in members((5,), shape)]
    found = train(task, given_members, hyper)
    local = LocalTrainer(task)
    again = [replace(member, plan=plans) for member in members((5,), shape)]
    assert_equal(found, alone(local, local.initial_weights(0), again, hyper))


def sequences() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 6), nn.LayerNorm(6), nn.ReLU(), nn.Flatten(2), nn.Linear(6, 3), nn.Flatten(),
        nn.Linear(36, NUM_CLASSES),
    )  # fmt: skip


@pytest.mark.parametrize("private", [False, True], ids=["plain", "dp"])
def test_layers_apply_to_the_last_dimension_of_longer_examples(private: bool) -> None:
    task = Images(model=sequences)
    plans = plan(7) if private else None
    given_members = [replace(member, plan=plans) for member in members((7,), (12, 12))]
    found = train(task, given_members, HYPER)
    local = LocalTrainer(task)
    again = [replace(member, plan=plans) for member in members((7,), (12, 12))]
    assert_equal(found, alone(local, local.initial_weights(0), again, HYPER))


def test_a_large_private_batch_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    task, plans = Images(model=LeNet), DpPlan(0.4, 0.9, 3, 0.5, 1e-5, 9.0)
    monkeypatch.setattr(fused_group, "MAX_PHYSICAL_BATCH", 4)
    found = train(task, [replace(members((12,))[0], plan=plans)], HYPER)
    local = LocalTrainer(task)
    again = [replace(members((12,))[0], plan=plans)]
    assert_equal(found, alone(local, local.initial_weights(0), again, HYPER))


@pytest.mark.parametrize("private", [False, True], ids=["plain", "dp"])
def test_more_members_than_a_group_holds_are_all_trained_in_their_order(private: bool) -> None:
    task, sizes = Images(model=LeNet), tuple(1 + 5 * at % 11 for at in range(19))
    plans = plan(6, num_steps=2) if private else None
    found = train(task, [replace(member, plan=plans) for member in members(sizes)], HYPER)
    local = LocalTrainer(task)
    again = [replace(member, plan=plans) for member in members(sizes)]
    assert_equal(found, alone(local, local.initial_weights(0), again, HYPER))


def test_empty_private_batches_still_take_noisy_steps() -> None:
    task, plans = Images(model=LeNet), DpPlan(0.4, 1e-12, 3, 0.5, 1e-5, 9.0)
    (found,) = train(task, [replace(members((4,))[0], plan=plans)], HYPER)
    assert isinstance(found, LocalResult)
    assert found.num_steps == 3
    assert np.isnan(found.loss)
    assert (found.delta != 0).all()


@pytest.mark.parametrize("private", [False, True], ids=["plain", "dp"])
def test_a_member_that_diverges_is_named_and_harms_no_other(private: bool) -> None:
    task = Images(model=LeNet)
    local = LocalTrainer(task)

    def cohort() -> list[CohortMember]:
        huge = images(4, 7)
        huge = Examples(np.sign(huge.inputs) * np.float32(3e38), huge.targets)
        good, other = members((5, 6))
        bad = CohortMember(huge, Draws.seeded(3))
        plans = plan(4, rate=0.9) if private else None
        return [replace(member, plan=plans) for member in (good, bad, other)]

    found = train(task, cohort(), HYPER)
    assert isinstance(found[1], TaskError)
    assert_equal(found, alone(local, local.initial_weights(0), cohort(), HYPER))


def test_a_learning_rate_that_overflows_gives_the_words_of_local_training() -> None:
    task, hyper = (
        Images(model=LeNet),
        replace(HYPER, learning_rate=1e38, weight_decay=1e4, local_epochs=1),
    )
    local = LocalTrainer(task)
    found = train(task, members((4,)), hyper)
    assert isinstance(found[0], TaskError)
    assert_equal(found, alone(local, local.initial_weights(0), members((4,)), hyper))


def test_frozen_parameters_stay() -> None:
    task = Images(model=partly_frozen)
    layout = LocalTrainer(task).layout
    (found,) = train(task, members((8,)), replace(HYPER, weight_decay=0.1))
    assert isinstance(found, LocalResult)
    moved = {name for name, part in layout.views(found.delta).items() if part.any()}
    assert moved == {"3.weight", "4.bias", "7.weight", "7.bias"}


def test_inputs_in_any_memory_order_give_the_same() -> None:
    task = Images(model=LeNet)
    member = members((8,))[0]
    turned = np.asfortranarray(member.examples.inputs)
    other = replace(members((8,))[0], examples=Examples(turned, member.examples.targets))
    first, second = train(task, [member], HYPER)[0], train(task, [other], HYPER)[0]
    assert isinstance(first, LocalResult)
    assert isinstance(second, LocalResult)
    assert np.array_equal(first.delta, second.delta)


@dataclass(frozen=True)
class OtherLoss(Images):
    """A loss that is not plain cross-entropy."""

    kind: str = "smoothed"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.kind == "smoothed":
            return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)
        if self.kind == "scaled":
            return F.cross_entropy(outputs, targets, reduction="none") * 0.5
        if self.kind == "random":
            return F.cross_entropy(F.dropout(outputs, 0.5), targets, reduction="none")
        return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("kind", ["smoothed", "scaled", "random", "mean"])
def test_other_losses_are_taken_as_they_are(kind: str) -> None:
    task = OtherLoss(model=LeNet, kind=kind)
    local = LocalTrainer(task)
    found = train(task, members((6, 5)), HYPER)
    assert_equal(found, alone(local, local.initial_weights(0), members((6, 5)), HYPER))
