"""The first steps of a client."""

import torch

from fedge.settings import Hyperparameters
from fedge.training.batch_plan import plan_batches
from fedge.training.cohort_contracts import Batches, CohortMember
from fedge.training.excerpts import excerpt, one_epoch
from fedge.training.local import LocalResult, LocalTrainer
from fedge.training.sequential import SequentialBackend
from tests.unit.fedge.training.cohorts import Toy, cohort, plan

HYPER = Hyperparameters(learning_rate=0.1, local_epochs=3, batch_size=4)


def batches(member: CohortMember, hyper: Hyperparameters = HYPER) -> Batches:
    local = LocalTrainer(Toy())
    (planned,) = plan_batches([member], local.layout, hyper, local.layout.size)
    assert isinstance(planned, Batches)
    return planned


def test_the_first_steps_take_the_examples_that_they_took_before() -> None:
    whole = batches(cohort((10,))[0])
    first = excerpt(whole, 5)
    assert len(first.steps) == 5
    assert len(first.inputs) <= len(whole.inputs)
    for before, after in zip(whole.steps[:5], first.steps, strict=True):
        assert torch.equal(whole.inputs[before], first.inputs[after])
        assert torch.equal(whole.targets[before], first.targets[after])


def test_a_short_member_stays_as_it_is() -> None:
    whole = batches(cohort((10,))[0])
    assert excerpt(whole, 9) is whole


def test_a_private_member_trains_its_first_steps() -> None:
    (member,) = cohort((10,), [plan(10, num_steps=6)])
    first = excerpt(batches(member), 2)
    assert first.plan is not None
    assert first.noise is not None
    assert (first.plan.num_steps, len(first.noise)) == (2, 2)
    parent = LocalTrainer(Toy()).initial_weights(0)
    (outcome,) = SequentialBackend(Toy()).train(parent, [first], one_epoch(HYPER))
    assert isinstance(outcome, LocalResult)
    assert outcome.num_steps == 2
