"""A parallel model of one process: weights in and out, gradients, clipping, the pull."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedge.errors import ConfigError
from fedge.params import Vector
from fedge.tasks.charlm import CharLm
from fedge.weights import layout_of, read_vector, write_vector
from server.trainer.optimizers import OPTIMIZERS
from server.trainer.parallel.degrees import Degrees, MeshConfig
from server.trainer.parallel.mesh import Mesh
from server.trainer.parallel.model import ParallelModel, Placed, Targets
from server.trainer.spec import RefineSpec

TASK = CharLm(width=16, depth=2, heads=2, context=6, alphabet="abcdefgh")


def parallel(**config: Any) -> ParallelModel:
    mesh = Mesh(Degrees(), torch.device("cpu"))
    return ParallelModel(TASK.build_model(), mesh, MeshConfig(**config), TASK.split_plan())


def batch(num_examples: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 8, (num_examples, 7), generator=generator)
    return codes[:, :-1], codes[:, 1:]


def placed(model: ParallelModel, inputs: Tensor, targets: Targets) -> Placed:
    """Place a batch of all rows, the last one first."""
    return model.place(inputs, targets, torch.arange(len(inputs)).flip(0))


def some_weights(seed: int = 0) -> Vector:
    torch.manual_seed(seed)
    model = TASK.build_model()
    return read_vector(model, layout_of(model))


def expected_gradients(weights: Vector) -> tuple[float, dict[str, Tensor]]:
    model = TASK.build_model()
    write_vector(model, layout_of(model), weights)
    inputs, targets = batch()
    loss = TASK.loss(model(inputs), targets).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    grads = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return loss.item(), grads


def gradients(model: ParallelModel) -> dict[str, Tensor]:
    return {piece.name: piece.local_grad() for piece in model.parameters()}


def test_weights_come_out_as_they_went_in() -> None:
    model, weights = parallel(), some_weights(5)
    model.load(weights)
    np.testing.assert_array_equal(model.read(), weights)
    assert list(model.state_dict()) == list(model.layout.names)


@pytest.mark.parametrize(
    "config", [{}, {"micro_batches": 3}, {"micro_batches": 12}, {"checkpointing": True}]
)
def test_gradients_are_those_of_the_mean_loss_each_time(config: dict[str, Any]) -> None:
    model, weights = parallel(**config), some_weights()
    model.load(weights)
    loss, grads = expected_gradients(weights)
    for _ in range(2):  # a second time adds to nothing
        assert model.compute(placed(model, *batch()), TASK.loss) == pytest.approx(loss, rel=1e-6)
        for name, grad in gradients(model).items():
            torch.testing.assert_close(grad, grads[name], rtol=1e-4, atol=1e-7)


def test_blocks_are_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(type(module)))
    parallel(compile=True)
    assert [kind.__name__ for kind in compiled] == ["Block", "Block"]


def test_bfloat16_computes_roughly_and_keeps_float32_weights_and_gradients() -> None:
    model, weights = parallel(precision="bfloat16"), some_weights()
    model.load(weights)
    loss, grads = expected_gradients(weights)
    assert model.compute(placed(model, *batch()), TASK.loss) == pytest.approx(loss, rel=1e-2)
    found = gradients(model)
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    assert any((grad != grads[name]).any() for name, grad in found.items())
    difference = sum(float((found[name] - grads[name]).square().sum()) for name in found)
    assert difference < 1e-3 * sum(float(grad.square().sum()) for grad in grads.values())
    np.testing.assert_array_equal(model.read(), weights)


def test_a_loss_gets_all_that_it_needs_beside_the_outputs() -> None:
    model = parallel(micro_batches=2)
    inputs, targets = batch()
    seen: list[float] = []

    def losses_of(outputs: Tensor, extra: tuple[Tensor, Tensor]) -> Tensor:
        seen.extend(extra[1].tolist())
        return TASK.loss(outputs, extra[0])

    model.compute(placed(model, inputs, (targets, torch.arange(7.0))), losses_of)
    assert sorted(set(seen)) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_clipping_bounds_the_norm_and_leaves_smaller_ones(factor: float) -> None:
    model, weights = parallel(), some_weights()
    model.load(weights)
    model.compute(placed(model, *batch()), TASK.loss)
    _, grads = expected_gradients(weights)
    norm = float(sum(grad.square().sum() for grad in grads.values()) ** 0.5)
    assert model.clip_gradients(factor * norm) == pytest.approx(norm, rel=1e-5)
    assert model.clip_gradients(1e9) == pytest.approx(min(factor, 1.0) * norm, rel=1e-5)


def test_the_pull_is_towards_the_anchor() -> None:
    model, anchor, weights = parallel(), some_weights(1), some_weights(2)
    model.load(anchor)
    model.set_anchor()
    model.load(weights)
    model.compute(placed(model, *batch()), TASK.loss)
    before = {name: grad.clone() for name, grad in gradients(model).items()}
    model.add_pull(0.25)
    away = model.layout.views(weights - anchor)
    for name, grad in gradients(model).items():
        expected = before[name] + 0.25 * torch.tensor(away[name])
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimisers_step_like_those_of_torch(name: str) -> None:
    model, reference = parallel(), TASK.build_model()
    weights = some_weights()
    model.load(weights)
    write_vector(reference, layout_of(reference), weights)
    ours = OPTIMIZERS[name](model.parameters(), RefineSpec(learning_rate=0.01, weight_decay=0.01))
    parameters = list(reference.parameters())
    theirs: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=0.01)
        if name == "sgd"
        else torch.optim.AdamW(parameters, 0.01, weight_decay=0.01)
    )
    for _ in range(3):
        model.compute(placed(model, *batch()), TASK.loss)
        ours.step()
        theirs.zero_grad()
        loss = TASK.loss(reference(batch()[0]), batch()[1]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        theirs.step()
    expected = read_vector(reference, layout_of(reference))
    np.testing.assert_allclose(model.read(), expected, rtol=1e-4, atol=1e-6)
    assert all(tensor.isfinite().all() for tensor in ours.state_dict().values())


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match="there are: adamw, sgd"):
        OPTIMIZERS["lion"]


def test_a_tied_tensor_is_one_parameter_under_two_names() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    model = ParallelModel(
        nn.Sequential(first, second), Mesh(Degrees(), torch.device("cpu")), MeshConfig()
    )
    assert [piece.name for piece in model.parameters()] == ["0.weight"]
    weights = np.tile(np.arange(9, dtype=np.float32), 2)
    model.load(weights)
    np.testing.assert_array_equal(model.read(), weights)
