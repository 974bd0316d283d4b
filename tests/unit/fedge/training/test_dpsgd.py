"""DP-SGD against oracles that share nothing with it but the draws."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.tasks.digits import Digits
from fedge.training import dpsgd
from fedge.training.dpsgd import run_dpsgd
from fedge.weights import layout_of, read_vector

HYPER = Hyperparameters(learning_rate=0.5, momentum=0.9)
TASK = Digits()
NUM_EXAMPLES = 24


def never() -> bool:
    return False


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(64),
        nn.Linear(64, 10, bias=False),
    )


class Scale(nn.Module):
    """A layer that Opacus has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((64,), 0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


def custom() -> nn.Module:
    return nn.Sequential(Scale(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def examples() -> Examples:
    return TASK.cloud_data().test.subset(np.arange(NUM_EXAMPLES))


def build(model: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return model().train()


def oracle(model: nn.Module, examples: Examples, plan: DpPlan, draws: Draws) -> list[float]:
    """DP-SGD with one autograd call an example; returns every gradient norm it saw."""
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    norms = []
    for _ in range(plan.num_steps):
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for index in draws.poisson_batch(len(examples), plan.sampling_rate).tolist():
            output = model(torch.tensor(examples.inputs[index : index + 1]))
            loss = TASK.loss(output, torch.tensor(examples.targets[index : index + 1]))[0]
            gradients = torch.autograd.grad(loss, parameters)
            norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
            norms.append(norm)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient * min(1.0, plan.clip_norm / norm)
        noise = draws.normal(sum(total.numel() for total in sums)) * plan.noise_multiplier
        start = 0
        with torch.no_grad():
            for parameter, total, speed in zip(parameters, sums, velocity, strict=True):
                part = noise[start : start + total.numel()].reshape(total.shape).float()
                start += total.numel()
                speed.mul_(HYPER.momentum)
                speed.add_(
                    (total + part * plan.clip_norm) / (plan.sampling_rate * plan.num_examples)
                )
                parameter.sub_(HYPER.learning_rate * speed)
    return norms


@pytest.mark.parametrize("model", [mlp, cnn, custom])
@pytest.mark.parametrize("clip_norm", [0.5, 3.0, 100.0])
def test_weights_equal_an_oracle_that_clips_example_by_example(
    model: Callable[[], nn.Module], clip_norm: float, examples: Examples
) -> None:
    plan = DpPlan(0.4 / clip_norm, 0.4, 5, clip_norm, 1e-5, 16.0)
    ours, theirs = build(model), build(model)
    progress = run_dpsgd(ours, TASK, examples, HYPER, plan, Draws.seeded(3), never)
    norms = oracle(theirs, examples, plan, Draws.seeded(3))
    layout = layout_of(ours)
    np.testing.assert_allclose(
        read_vector(ours, layout), read_vector(theirs, layout), atol=3e-5, rtol=1e-4
    )
    assert progress.num_steps == 5
    assert progress.num_examples == len(norms)
    if clip_norm == 0.5:
        assert np.mean(np.array(norms) > clip_norm) > 0.9


def test_with_hardly_any_noise_or_clipping_it_is_averaged_sgd_on_the_poisson_batches(
    examples: Examples,
) -> None:
    plan = DpPlan(1e-9, 0.5, 6, 1e4, 1e-5, 20.0)
    ours, theirs = build(mlp), build(mlp)
    run_dpsgd(ours, TASK, examples, HYPER, plan, Draws.seeded(8), never)
    draws = Draws.seeded(8)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5, momentum=0.9)
    layout = layout_of(theirs)
    for _ in range(6):
        batch = draws.poisson_batch(NUM_EXAMPLES, 0.5).numpy()
        draws.normal(layout.size)
        optimizer.zero_grad()
        outputs = theirs(torch.tensor(examples.inputs[batch]))
        # Divided by the public expected batch, 10, and not by how many were drawn.
        loss = TASK.loss(outputs, torch.tensor(examples.targets[batch])).sum() / 10.0
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    np.testing.assert_allclose(read_vector(ours, layout), read_vector(theirs, layout), atol=2e-5)


def test_a_large_batch_in_parts_equals_it_in_one(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = DpPlan(1.0, 0.9, 3, 1.0, 1e-5, 24.0)
    whole, parts = build(mlp), build(mlp)
    run_dpsgd(whole, TASK, examples, HYPER, plan, Draws.seeded(1), never)
    monkeypatch.setattr(dpsgd, "MAX_PHYSICAL_BATCH", 5)
    run_dpsgd(parts, TASK, examples, HYPER, plan, Draws.seeded(1), never)
    layout = layout_of(whole)
    np.testing.assert_allclose(read_vector(whole, layout), read_vector(parts, layout), atol=1e-6)


def test_empty_batches_still_add_noise_of_the_right_size(examples: Examples) -> None:
    # Of 24 examples at this rate none is ever drawn.
    plan = DpPlan(2.0, 1e-12, 10, 0.5, 1e-5, 4e12)
    model = build(mlp)
    layout = layout_of(model)
    before = read_vector(model, layout)
    hyper = Hyperparameters(learning_rate=1.0, momentum=0.0)
    progress = run_dpsgd(model, TASK, examples, hyper, plan, Draws.seeded(0), never)
    assert progress.num_steps == 10
    assert progress.num_examples == 0
    assert math.isnan(progress.loss)
    change = (read_vector(model, layout) - before).astype(np.float64)
    # Ten steps of noise 2.0 × 0.5 over the expected batch of 4.
    deviation = math.sqrt(10) * 2.0 * 0.5 / 4.0
    assert change.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * layout.size))
    assert abs(change.mean()) < 5 * deviation / math.sqrt(layout.size)


@dataclass
class Counting:
    """Seeded draws that count what is asked of them."""

    draws: Draws
    num_uniforms: list[int]

    @staticmethod
    def make() -> "Counting":
        inner, sizes = Draws.seeded(0), list[int]()

        def uniform(size: int) -> Tensor:
            sizes.append(size)
            return inner.uniform(size)

        return Counting(Draws(uniform, private=False), sizes)


@pytest.mark.parametrize("num_steps", [1, 7])
def test_exactly_the_planned_steps_are_drawn_and_noised(num_steps: int, examples: Examples) -> None:
    counting = Counting.make()
    plan = DpPlan(1.0, 0.3, num_steps, 1.0, 1e-5, 16.0)
    run_dpsgd(build(mlp), TASK, examples, HYPER, plan, counting.draws, never)
    half = (layout_of(mlp()).size + 1) // 2
    assert counting.num_uniforms == [NUM_EXAMPLES, half, half] * num_steps


def test_examples_are_drawn_at_the_sampling_rate(examples: Examples) -> None:
    plan = DpPlan(1.0, 0.25, 400, 1.0, 1e-5, 16.0)
    progress = run_dpsgd(build(mlp), TASK, examples, HYPER, plan, Draws.seeded(6), never)
    expected, trials = 0.25 * 400 * NUM_EXAMPLES, 400 * NUM_EXAMPLES
    assert abs(progress.num_examples - expected) < 5 * math.sqrt(trials * 0.25 * 0.75)


def test_one_example_moves_the_sum_by_at_most_the_clipping_norm(examples: Examples) -> None:
    clip_norm = 0.7
    plan = DpPlan(1e-9, 1.0, 1, clip_norm, 1e-5, 1.0)
    hyper = Hyperparameters(learning_rate=1.0, momentum=0.0)
    layout = layout_of(mlp())

    def change(data: Examples) -> np.ndarray:
        model = build(mlp)
        before = read_vector(model, layout).astype(np.float64)
        run_dpsgd(model, TASK, data, hyper, plan, Draws.seeded(0), never)
        return read_vector(model, layout) - before

    everyone = change(examples)
    for left_out in range(0, NUM_EXAMPLES, 5):
        others = examples.subset(np.delete(np.arange(NUM_EXAMPLES), left_out))
        distance = np.linalg.norm(everyone - change(others))
        assert 0.5 * clip_norm < distance <= clip_norm * (1 + 1e-3)


def test_every_trace_of_opacus_is_taken_off_the_model(examples: Examples) -> None:
    model = build(mlp)
    plan = DpPlan(1.0, 0.5, 2, 1.0, 1e-5, 16.0)
    run_dpsgd(model, TASK, examples, HYPER, plan, Draws.seeded(0), never)
    for layer in model.modules():
        assert not layer._forward_hooks
        assert not layer._backward_hooks
        assert "activations" not in vars(layer)
    for parameter in model.parameters():
        assert not {"grad_sample", "_norm_sample", "_forward_counter"} & vars(parameter).keys()


def test_a_step_broken_off_by_the_task_does_not_spoil_the_next_training(
    examples: Examples,
) -> None:
    class Failing(Digits):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            raise TaskError("broken")

    plan = DpPlan(1.0, 0.5, 2, 1.0, 1e-5, 16.0)
    model, fresh = build(mlp), build(mlp)
    with pytest.raises(TaskError, match="broken"):
        run_dpsgd(model, Failing(), examples, HYPER, plan, Draws.seeded(0), never)
    for one in (model, fresh):
        run_dpsgd(one, TASK, examples, HYPER, plan, Draws.seeded(1), never)
    layout = layout_of(model)
    assert np.array_equal(read_vector(model, layout), read_vector(fresh, layout))


class Tied(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(64, 64)
        self.last = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.last(self.shared(torch.relu(self.shared(inputs))))
        return output


class Unused(nn.Module):
    """A layer that the output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(64, 10)
        self.idle = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.used(inputs)
        return output


@pytest.mark.parametrize(
    ("model", "text"), [(Tied, "Parameter tying"), (Unused, "takes no part in the model's output")]
)
def test_a_model_whose_norms_cannot_be_known_is_refused(
    model: Callable[[], nn.Module], text: str, examples: Examples
) -> None:
    plan = DpPlan(1.0, 1.0, 1, 1.0, 1e-5, 16.0)
    with pytest.raises(TaskError, match=text):
        run_dpsgd(build(model), TASK, examples, HYPER, plan, Draws.seeded(0), never)
