import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.tasks.digits import Digits
from fedge.training.local import LocalTrainer
from fedge.weights import read_vector, write_vector

HYPER = Hyperparameters(learning_rate=0.3, momentum=0.6, local_epochs=3, batch_size=8)
PLAN = DpPlan(1.0, 0.5, 4, 1.0, 1e-5, 16.0)


class Other(Digits):
    """Digits with another model or loss."""

    def __init__(self, model: Callable[[], nn.Module]) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)

    def build_model(self) -> nn.Module:
        model: nn.Module = self.model()  # type: ignore[attr-defined]
        return model


@pytest.fixture(scope="module")
def trainer() -> LocalTrainer:
    return LocalTrainer(Digits())


@pytest.fixture(scope="module")
def examples() -> Examples:
    return Digits().cloud_data().proxy.subset(np.arange(20))


def plain_sgd(parent: Vector, examples: Examples, batches: list[list[int]]) -> Vector:
    """SGD with momentum written out by hand, batch by batch."""
    trainer = LocalTrainer(Digits())
    model = trainer._model
    write_vector(model, trainer.layout, parent)
    velocity = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for batch in batches:
        model.zero_grad()
        outputs = model(torch.tensor(examples.inputs[batch]))
        loss = nn.functional.cross_entropy(outputs, torch.tensor(examples.targets[batch]))
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter, speed in zip(model.parameters(), velocity, strict=True):
                assert parameter.grad is not None
                speed.mul_(HYPER.momentum).add_(parameter.grad)
                parameter.sub_(HYPER.learning_rate * speed)
    return read_vector(model, trainer.layout)


def test_sgd_equals_a_loop_written_by_hand(trainer: LocalTrainer, examples: Examples) -> None:
    parent = trainer.initial_weights(0)
    draws = Draws.seeded(5)
    draws.seed()
    epochs = [draws.permutation(20).tolist() for _ in range(3)]
    batches = [epoch[start : start + 8] for epoch in epochs for start in (0, 8, 16)]
    result = trainer.train(parent, examples, HYPER, draws=Draws.seeded(5))
    expected = plain_sgd(parent, examples, batches)
    np.testing.assert_allclose(parent + result.delta, expected, atol=1e-6)
    assert result.num_steps == 9
    assert result.seconds > 0


def test_adam_equals_its_formulas_written_by_hand(
    trainer: LocalTrainer, examples: Examples
) -> None:
    hyper = replace(HYPER, optimizer="adam", momentum=0.0, learning_rate=0.01, weight_decay=0.1)
    parent = trainer.initial_weights(0)
    draws = Draws.seeded(5)
    draws.seed()
    epochs = [draws.permutation(20).tolist() for _ in range(3)]
    weights = torch.tensor(parent, dtype=torch.float64)
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    model = Digits().build_model()
    batches = [epoch[start : start + 8] for epoch in epochs for start in (0, 8, 16)]
    for step, batch in enumerate(batches, start=1):
        write_vector(model, trainer.layout, weights.float().numpy())
        model.zero_grad()
        outputs = model(torch.tensor(examples.inputs[batch]))
        loss = nn.functional.cross_entropy(outputs, torch.tensor(examples.targets[batch]))
        loss.backward()  # type: ignore[no-untyped-call]
        slopes = [value.grad.flatten() for value in model.parameters() if value.grad is not None]
        gradient = torch.cat(slopes).double() + 0.1 * weights
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        scale = (square / (1 - 0.999**step)).sqrt() + 1e-8
        weights = weights - 0.01 * mean / (1 - 0.9**step) / scale
    result = trainer.train(parent, examples, hyper, draws=Draws.seeded(5))
    np.testing.assert_allclose(parent + result.delta, weights.numpy(), atol=1e-5)


def test_training_learns(trainer: LocalTrainer) -> None:
    data = Digits().cloud_data()
    parent = trainer.initial_weights(0)
    result = trainer.train(
        parent, data.proxy, replace(HYPER, local_epochs=20), draws=Draws.seeded(1)
    )
    before, after = (
        trainer.evaluate(weights, data.test) for weights in (parent, parent + result.delta)
    )
    assert before["accuracy"] < 0.4
    assert after["accuracy"] > 0.75
    assert after["loss"] < before["loss"]


def test_a_run_starts_from_the_parent_and_leaves_it_alone(
    trainer: LocalTrainer, examples: Examples
) -> None:
    parent = trainer.initial_weights(0)
    kept = parent.copy()
    for plan in (None, PLAN):
        first = trainer.train(parent, examples, HYPER, draws=Draws.seeded(2), plan=plan)
        trainer.train(parent + 1, examples, HYPER, draws=Draws.seeded(9), plan=plan)
        again = trainer.train(parent, examples, HYPER, draws=Draws.seeded(2), plan=plan)
        assert np.array_equal(first.delta, again.delta)
        assert first.loss == again.loss
        assert np.array_equal(parent, kept)


def test_secure_draws_differ_between_two_calls(trainer: LocalTrainer, examples: Examples) -> None:
    parent = trainer.initial_weights(0)
    first, second = (
        trainer.train(parent, examples, HYPER, draws=Draws.secure(), plan=PLAN).delta
        for _ in range(2)
    )
    assert np.mean(first == second) < 0.01


def test_dropout_works_in_training_and_repeats_by_seed(examples: Examples) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))

    trainer = LocalTrainer(Other(model))
    parent = trainer.initial_weights(0)
    before = torch.get_rng_state()
    for plan in (None, PLAN):
        first, again, other = (
            trainer.train(parent, examples, HYPER, draws=Draws.seeded(seed), plan=plan).delta
            for seed in (1, 1, 2)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
    assert trainer.evaluate(parent, examples) == trainer.evaluate(parent, examples)
    assert torch.equal(before, torch.get_rng_state())


def test_initial_weights_follow_from_the_seed(trainer: LocalTrainer) -> None:
    torch.manual_seed(1)
    first = trainer.initial_weights(4)
    torch.manual_seed(2)
    assert np.array_equal(first, trainer.initial_weights(4))
    assert not np.array_equal(first, trainer.initial_weights(5))
    assert np.array_equal(first, LocalTrainer(Digits(seed=9)).initial_weights(4))


@pytest.mark.parametrize("plan", [None, PLAN], ids=["sgd", "dp-sgd"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_sample_that_is_not_finite_is_named_and_nothing_is_trained(
    trainer: LocalTrainer, examples: Examples, plan: DpPlan | None, value: float
) -> None:
    inputs = examples.inputs.copy()
    inputs[13, 5] = value
    broken = Examples(inputs, examples.targets)
    with pytest.raises(TaskError, match=r"example 13 has a non-finite input; .*1 of 20"):
        trainer.train(trainer.initial_weights(0), broken, HYPER, draws=Draws.seeded(0), plan=plan)


@pytest.mark.parametrize("plan", [None, replace(PLAN, sampling_rate=1.0)], ids=["sgd", "dp-sgd"])
def test_a_finite_sample_that_overflows_is_named(
    trainer: LocalTrainer, examples: Examples, plan: DpPlan | None
) -> None:
    inputs = examples.inputs.copy()
    inputs[7] = 3e38
    broken = Examples(inputs, examples.targets)
    with pytest.raises(TaskError, match=r"example 7 has a non-finite (loss|gradient) in step 1"):
        trainer.train(
            trainer.initial_weights(0),
            broken,
            replace(HYPER, batch_size=32),
            draws=Draws.seeded(0),
            plan=plan,
        )
    good = trainer.train(
        trainer.initial_weights(0), examples, HYPER, draws=Draws.seeded(0), plan=plan
    )
    assert np.isfinite(good.delta).all()


def test_training_that_diverges_says_what_to_lower(
    trainer: LocalTrainer, examples: Examples
) -> None:
    wild = replace(HYPER, learning_rate=1e38)
    with pytest.raises(TaskError, match="learning_rate"):
        trainer.train(trainer.initial_weights(0), examples, wild, draws=Draws.seeded(0))
    with pytest.raises(TaskError, match="learning_rate"):
        trainer.train(trainer.initial_weights(0), examples, wild, draws=Draws.seeded(0), plan=PLAN)


def test_weights_that_do_not_fit_or_are_not_finite_are_refused(
    trainer: LocalTrainer, examples: Examples
) -> None:
    with pytest.raises(TaskError, match=r"do not fit the task's model.*shape"):
        trainer.train(np.zeros(3, np.float32), examples, HYPER, draws=Draws.seeded(0))
    broken = trainer.initial_weights(0)
    broken[0] = np.nan
    with pytest.raises(TaskError, match="global weights are not finite"):
        trainer.train(broken, examples, HYPER, draws=Draws.seeded(0))


def test_no_examples_are_refused(trainer: LocalTrainer, examples: Examples) -> None:
    none = examples.subset(np.zeros(0, np.int64))
    weights = trainer.initial_weights(0)
    with pytest.raises(TaskError, match="no examples to train on"):
        trainer.train(weights, none, HYPER, draws=Draws.seeded(0))
    with pytest.raises(TaskError, match="no examples to evaluate on"):
        trainer.evaluate(weights, none)
    assert trainer.losses(weights, none).shape == (0,)


def test_batchnorm_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(TaskError, match="'1' is BatchNorm"):
        LocalTrainer(Other(lambda: nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))))


def test_a_loss_that_is_not_one_an_example_is_refused(examples: Examples) -> None:
    class Mean(Digits):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs, targets)

    trainer = LocalTrainer(Mean())
    with pytest.raises(TaskError, match=r"loss has shape \[\] for 8 examples"):
        trainer.train(trainer.initial_weights(0), examples, HYPER, draws=Draws.seeded(0))


@pytest.mark.parametrize("plan", [None, PLAN], ids=["sgd", "dp-sgd"])
def test_told_to_stop_it_returns_the_steps_so_far(
    trainer: LocalTrainer, examples: Examples, plan: DpPlan | None
) -> None:
    parent = trainer.initial_weights(0)
    answers = iter([False, False, True])
    result = trainer.train(
        parent,
        examples,
        HYPER,
        draws=Draws.seeded(0),
        plan=plan,
        should_stop=lambda: next(answers),
    )
    assert result.num_steps == 2
    assert np.abs(result.delta).max() > 0


def test_frozen_parameters_stay_as_they_are(examples: Examples) -> None:
    def model() -> nn.Module:
        layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        layers[0].weight.requires_grad = False
        return layers

    trainer = LocalTrainer(Other(model))
    for plan in (None, PLAN):
        result = trainer.train(
            trainer.initial_weights(0), examples, HYPER, draws=Draws.seeded(0), plan=plan
        )
        deltas = trainer.layout.views(result.delta)
        assert np.abs(deltas["0.weight"]).max() == 0
        assert np.abs(deltas["2.weight"]).max() > 0


def test_nothing_is_warned_about_read_only_arrays_or_hooks(examples: Examples) -> None:
    trainer = LocalTrainer(Digits())
    parent = trainer.initial_weights(0)
    for array in (parent, examples.inputs, examples.targets):
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train(parent, examples, HYPER, draws=Draws.seeded(0), plan=PLAN)
        trainer.train(parent, examples, HYPER, draws=Draws.seeded(0))
        trainer.evaluate(parent, examples)


def test_evaluation_means_agree_with_the_values_example_by_example(trainer: LocalTrainer) -> None:
    data = Digits().cloud_data()
    everything = Examples(
        np.concatenate([data.test.inputs] * 2 + [data.gate.inputs]),
        np.concatenate([data.test.targets] * 2 + [data.gate.targets]),
    )
    weights = trainer.initial_weights(3)
    means = trainer.evaluate(weights, everything)
    alone = [trainer.evaluate(weights, everything.subset(np.array([i]))) for i in range(680)]
    assert len(everything) == 680
    assert set(means) == {"loss", "accuracy"}
    assert {row["accuracy"] for row in alone} == {0.0, 1.0}
    for name, mean in means.items():
        assert np.mean([row[name] for row in alone]) == pytest.approx(mean, abs=1e-6)
    losses = trainer.losses(weights, everything)
    np.testing.assert_allclose(losses, [row["loss"] for row in alone], rtol=1e-5, atol=1e-7)
