"""Which models the fused backend takes, and what it says of the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedge.settings import Hyperparameters
from fedge.training.cohort_contracts import CohortSettings
from fedge.training.fused.chain import Rows, chain_of
from fedge.training.fused.losses import LossGradient
from fedge.training.fused.program import Chain, pool_first
from tests.unit.fedge.training.fused.chains import (
    Images,
    LeNet,
    backend,
    cnn,
    partly_frozen,
    smooth,
)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = x + self.inner(x)
        return outputs


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.inner(x) if x.sum() > 0 else self.inner(-x)
        return outputs


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.inner(x)
        return outputs


class Mixing(Unused):
    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.other(self.inner(x).view(4, -1, 8))
        return outputs


class Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.inner(x.reshape(-1, 8))
        return outputs


def twice() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.ReLU(), layer)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].register_forward_hook(lambda *_: None)
    return model


def frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8)).requires_grad_(False)


@pytest.mark.parametrize("model", [cnn, LeNet, smooth, partly_frozen, Viewing])
def test_chains_of_layers_are_taken(model: Callable[[], nn.Module]) -> None:
    made = backend(Images(model=model))
    for private in (False, True):
        assert made.reason_against(model(), Hyperparameters(), private) == ""


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Residual, "add does not take the layer before it alone"),
        (Branching, "Branching cannot be traced"),
        (Unused, "a trained parameter belongs to no layer of the chain"),
        (Mixing, "view reshapes in a way that may mix examples"),
        (twice, "shares its parameters with another layer"),
        (hooked, "layer 0 has hooks"),
        (frozen, "no parameter is trained"),
        (lambda: nn.Sequential(nn.GRU(8, 8)), "layer 0 is a GRU, which has no step"),
        (lambda: nn.Sequential(nn.Linear(8, 8), Residual()), "add does not take"),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding_mode="reflect")),
            "layer 0 (Conv2d) pads by 'reflect'",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding="same")),
            "layer 0 (Conv2d) has padding 'same'",
        ),
        (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(8, 8)), "mixes the examples"),
    ],
)
def test_the_reason_against_a_model_names_the_layer(
    model: Callable[[], nn.Module], words: str
) -> None:
    assert words in backend(Images()).reason_against(model(), Hyperparameters(), False)


def test_other_precisions_and_devices_are_refused() -> None:
    for settings in (CohortSettings(precision="bfloat16"), CohortSettings(device="cuda")):
        made = backend(Images(), settings)
        assert "float32 on the CPU" in made.reason_against(cnn(), Hyperparameters(), False)


def test_an_unknown_optimiser_is_a_reason() -> None:
    hyper = Hyperparameters()
    object.__setattr__(hyper, "optimizer", "lion")
    assert "'lion'" in backend(Images()).reason_against(cnn(), hyper, False)


def test_a_traced_forward_pass_becomes_the_same_layers_as_a_sequence() -> None:
    kinds = [type(layer).__name__ for _, layer in chain_of(LeNet())]
    pools = ["ReLU", "MaxPool2d"]
    assert kinds == [
        "Conv2d", *pools, "Conv2d", *pools, "Flatten", "Linear", "ReLU", "Linear",
    ]  # fmt: skip
    assert [type(layer) for _, layer in chain_of(Viewing())] == [Rows, nn.Linear]


def test_pooling_goes_before_activations_that_keep_the_order_only() -> None:
    chain: Chain = [
        ("", layer) for layer in (nn.ReLU(), nn.MaxPool2d(2), nn.GELU(), nn.MaxPool2d(2))
    ]
    kinds = [type(layer) for _, layer in pool_first(chain)]
    assert kinds == [nn.MaxPool2d, nn.ReLU, nn.GELU, nn.MaxPool2d]


def test_plain_cross_entropy_is_written_out_and_equals_autograd() -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(1, 6, 4), torch.tensor([[0, 3, 1, 2, 2, -100]])
    gradient, weights = LossGradient(Images()), torch.rand(1, 6)
    watched, written = (gradient(outputs, targets, weights) for _ in range(2))
    assert gradient.is_plain
    for first, second in zip(watched, written, strict=True):
        torch.testing.assert_close(first, second)
    assert not watched[0].requires_grad
