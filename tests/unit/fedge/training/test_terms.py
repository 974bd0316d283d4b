"""Client terms against objectives written out for autograd, and what DP must not change."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedge.errors import ConfigError, TaskError
from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import CLIENT_TERMS, Hyperparameters
from fedge.task import Examples
from fedge.tasks.digits import Digits
from fedge.training.local import LocalResult, LocalTrainer
from fedge.training.terms import TERMS, make_term
from fedge.weights import read_vector, write_vector

NUM_EXAMPLES, BATCH = 20, 8
HYPER = Hyperparameters(learning_rate=0.3, momentum=0.6, local_epochs=3, batch_size=BATCH)
PROX = replace(HYPER, client_term="fedprox", proximal_mu=0.7)
SCAFFOLD = replace(HYPER, client_term="scaffold")
PLAN = DpPlan(1.0, 0.5, 4, 1.0, 1e-5, 16.0)


@pytest.fixture(scope="module")
def trainer() -> LocalTrainer:
    return LocalTrainer(Digits())


@pytest.fixture(scope="module")
def examples() -> Examples:
    return Digits().cloud_data().proxy.subset(np.arange(NUM_EXAMPLES))


@pytest.fixture(scope="module")
def correction(trainer: LocalTrainer) -> Vector:
    return np.random.default_rng(4).normal(size=trainer.layout.size, scale=0.1).astype(np.float32)


def train(
    trainer: LocalTrainer,
    examples: Examples,
    hyper: Hyperparameters,
    *,
    plan: DpPlan | None = None,
    correction: Vector | None = None,
) -> LocalResult:
    return trainer.train(
        trainer.initial_weights(0),
        examples,
        hyper,
        draws=Draws.seeded(5),
        plan=plan,
        correction=correction,
    )


def shuffled_batches(num_epochs: int) -> list[list[int]]:
    """Return the batches that training draws from the seed above."""
    draws = Draws.seeded(5)
    draws.seed()
    epochs = [draws.permutation(NUM_EXAMPLES).tolist() for _ in range(num_epochs)]
    return [epoch[at : at + BATCH] for epoch in epochs for at in range(0, NUM_EXAMPLES, BATCH)]


def descend(
    examples: Examples,
    hyper: Hyperparameters,
    batches: list[list[int]],
    *,
    mu: float = 0.0,
    decay: float = 0.0,
    slope: Vector | None = None,
) -> Vector:
    """SGD with momentum by hand on loss + μ/2·‖w − w₀‖² + decay/2·‖w‖² + slope·w."""
    trainer = LocalTrainer(Digits())
    model, layout = trainer._model, trainer.layout
    parent = trainer.initial_weights(0)
    write_vector(model, layout, parent)
    parameters = dict(model.named_parameters())
    starts = {name: value.detach().clone() for name, value in parameters.items()}
    slopes = layout.views(np.zeros(layout.size, np.float32) if slope is None else slope)
    velocity = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for batch in batches:
        outputs = model(torch.tensor(examples.inputs[batch]))
        objective = nn.functional.cross_entropy(outputs, torch.tensor(examples.targets[batch]))
        for name, value in parameters.items():
            objective = objective + mu / 2 * (value - starts[name]).square().sum()
            objective = objective + decay / 2 * value.square().sum()
            objective = objective + (torch.tensor(slopes[name]) * value).sum()
        gradients = torch.autograd.grad(objective, list(parameters.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
                velocity[name].mul_(hyper.momentum).add_(gradient)
                value.sub_(hyper.learning_rate * velocity[name])
    return read_vector(model, layout) - parent


def test_settings_and_registry_name_the_same_terms() -> None:
    assert sorted(CLIENT_TERMS) == list(TERMS)


def test_fedprox_is_sgd_on_the_objective_with_the_proximal_term(
    trainer: LocalTrainer, examples: Examples
) -> None:
    found = train(trainer, examples, PROX).delta
    batches = shuffled_batches(PROX.local_epochs)
    np.testing.assert_allclose(found, descend(examples, PROX, batches, mu=0.7), atol=1e-6)
    assert np.abs(found - descend(examples, PROX, batches)).max() > 1e-2


def test_weight_decay_is_sgd_on_the_objective_with_a_ridge(
    trainer: LocalTrainer, examples: Examples
) -> None:
    hyper = replace(HYPER, weight_decay=0.2)
    found = train(trainer, examples, hyper).delta
    expected = descend(examples, hyper, shuffled_batches(hyper.local_epochs), decay=0.2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scaffold_is_sgd_on_the_objective_tilted_by_the_correction(
    trainer: LocalTrainer, examples: Examples, correction: Vector
) -> None:
    found = train(trainer, examples, SCAFFOLD, correction=correction).delta
    batches = shuffled_batches(SCAFFOLD.local_epochs)
    np.testing.assert_allclose(
        found, descend(examples, SCAFFOLD, batches, slope=correction), atol=1e-5
    )


def test_scaffold_without_a_correction_yet_is_plain_training(
    trainer: LocalTrainer, examples: Examples
) -> None:
    zero = np.zeros(trainer.layout.size, np.float32)
    plain = train(trainer, examples, HYPER).delta
    np.testing.assert_array_equal(train(trainer, examples, SCAFFOLD).delta, plain)
    np.testing.assert_array_equal(train(trainer, examples, SCAFFOLD, correction=zero).delta, plain)


@pytest.mark.parametrize("plan", [None, PLAN], ids=["sgd", "dp-sgd"])
def test_a_stronger_proximal_term_keeps_the_client_nearer(
    trainer: LocalTrainer, examples: Examples, plan: DpPlan | None
) -> None:
    distances = [
        np.linalg.norm(train(trainer, examples, replace(PROX, proximal_mu=mu), plan=plan).delta)
        for mu in (0.0, 0.1, 1.0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] == np.linalg.norm(train(trainer, examples, HYPER, plan=plan).delta)
    assert distances[2] < 0.9 * distances[0]


def test_under_dp_fedprox_descends_the_same_objective_where_nothing_is_clipped_or_noised(
    trainer: LocalTrainer, examples: Examples
) -> None:
    whole = DpPlan(1e-9, 1.0, 5, 1e4, 1e-5, float(NUM_EXAMPLES))
    found = train(trainer, examples, PROX, plan=whole).delta
    expected = descend(examples, PROX, [list(range(NUM_EXAMPLES))] * 5, mu=0.7)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_under_dp_the_correction_is_neither_clipped_nor_does_it_change_clip_or_noise(
    trainer: LocalTrainer, examples: Examples, correction: Vector
) -> None:
    hyper = replace(SCAFFOLD, momentum=0.0)
    one_step = replace(PLAN, num_steps=1)
    plain = train(trainer, examples, hyper, plan=one_step).delta
    large = correction * 100
    tilted = train(trainer, examples, hyper, plan=one_step, correction=large).delta
    np.testing.assert_allclose(tilted - plain, -hyper.learning_rate * large, atol=1e-5)


def test_a_correction_is_refused_that_has_no_use_or_cannot_be_used(
    trainer: LocalTrainer, examples: Examples, correction: Vector
) -> None:
    broken = correction.copy()
    broken[3] = math.nan
    cases: list[tuple[Hyperparameters, Vector, str]] = [
        (PROX, correction, "client_term is 'fedprox'"),
        (SCAFFOLD, correction[:-1], r"shape \[\d+\], the model needs \[\d+\]"),
        (SCAFFOLD, broken, "not finite"),
    ]
    for hyper, given, text in cases:
        with pytest.raises(TaskError, match=text):
            train(trainer, examples, hyper, correction=given)


def test_an_unknown_term_is_named_with_those_there_are(trainer: LocalTrainer) -> None:
    with pytest.raises(ConfigError, match=r"'moon'.*fedprox, none, scaffold"):
        make_term(Digits().build_model(), trainer.layout, Hyperparameters(client_term="moon"))


class Uneven(Digits):
    """A model with a frozen layer and one that takes no part in the output."""

    def build_model(self) -> nn.Module:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.frozen = nn.Linear(64, 16).requires_grad_(False)
                self.idle = nn.Linear(3, 3)
                self.last = nn.Linear(16, 10)

            def forward(self, inputs: Tensor) -> Tensor:
                outputs: Tensor = self.last(self.frozen(inputs))
                return outputs

        return Model()


@pytest.mark.parametrize("hyper", [PROX, SCAFFOLD], ids=["fedprox", "scaffold"])
def test_a_term_moves_nothing_that_training_leaves_alone(
    hyper: Hyperparameters, examples: Examples
) -> None:
    trainer = LocalTrainer(Uneven())
    ones = np.ones(trainer.layout.size, np.float32)
    ones.flags.writeable = False
    correction = ones if hyper is SCAFFOLD else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        delta = train(trainer, examples, hyper, correction=correction).delta
    parts = trainer.layout.views(delta)
    assert np.abs(parts["frozen.weight"]).max() == 0
    assert np.abs(parts["idle.weight"]).max() == 0
    assert np.abs(parts["last.weight"]).max() > 0


@pytest.mark.parametrize("hyper", [PROX, SCAFFOLD], ids=["fedprox", "scaffold"])
def test_a_term_leaves_personal_parameters_alone(
    trainer: LocalTrainer, correction: Vector, hyper: Hyperparameters
) -> None:
    """From one and the same point plain training and the term's differ in shared layers only."""
    model, layout = trainer._model, trainer.layout
    name, shared = layout.names[0], layout.names[-1]
    personal = replace(hyper, personal_layers=(name,))
    sent = correction if hyper is SCAFFOLD else None
    write_vector(model, layout, trainer.initial_weights(0))
    term = make_term(model, layout, personal, sent)
    parameters = dict(model.named_parameters())
    for value in parameters.values():
        value.grad = torch.zeros_like(value)
        value.data += 1
    term.add_to_gradients()
    assert not parameters[name].grad.any()  # type: ignore[union-attr]
    assert parameters[shared].grad.any()  # type: ignore[union-attr]
