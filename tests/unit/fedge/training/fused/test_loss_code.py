"""A loss is written out only where its code can do nothing else than what was seen once."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.training.fused.losses import cross_entropy, is_always_one_call


def plain(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def imported(outputs: Tensor, targets: Tensor) -> Tensor:
    from torch.nn import functional as inner

    return inner.cross_entropy(outputs, targets, reduction="none")


def dotted(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def branching(outputs: Tensor, targets: Tensor) -> Tensor:
    if (targets == 0).all():
        return outputs.sum(1)
    return functional.cross_entropy(outputs, targets, reduction="none")


def hurried(outputs: Tensor, targets: Tensor) -> Tensor:
    torch.manual_seed(0)
    return functional.cross_entropy(outputs, targets, reduction="none")


class Annealed:
    smoothing = 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(
            outputs, targets, reduction="none", label_smoothing=self.smoothing
        )


class Counting:
    calls = 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls = 1
        return functional.cross_entropy(outputs, targets, reduction="none")


def test_code_of_one_call_is_known_for_good() -> None:
    assert all(is_always_one_call(loss) for loss in (plain, imported, dotted))


def test_code_that_may_do_otherwise_is_not() -> None:
    others = (branching, hurried, Annealed().loss, Counting().loss, print)
    assert not any(is_always_one_call(loss) for loss in others)


def test_cross_entropy_in_columns_is_torchs_and_so_is_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    for size, classes in ((1, 2), (7, 10), (128, 65)):
        outputs = 5 * torch.randn(size, classes, generator=generator)
        targets = torch.randint(0, classes, (size,), generator=generator)
        weights = torch.rand(size, generator=generator)
        leaf = outputs.clone().requires_grad_()
        expected = functional.cross_entropy(leaf, targets, reduction="none")
        (slope,) = torch.autograd.grad(expected, leaf, weights)
        losses, grad = cross_entropy(outputs, targets, weights)
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad, slope, rtol=1e-5, atol=1e-6)


def test_a_target_that_counts_nothing_is_left_to_torch() -> None:
    losses, grad = cross_entropy(torch.ones(2, 3), torch.tensor([-100, 1]), torch.ones(2))
    assert losses[0] == 0
    assert not grad[0].any()
