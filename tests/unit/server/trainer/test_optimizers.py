from typing import Any

import pytest
import torch
from torch import nn

from server.trainer.optimizers import OPTIMIZERS
from server.trainer.spec import RefineSpec


@pytest.mark.parametrize(
    ("name", "peer", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8}),
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.1}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.0}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
def test_every_optimizer_equals_torch_optim(name: str, peer: Any, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,))]
    theirs = [nn.Parameter(each.detach().clone()) for each in ours]
    spec = RefineSpec(optimizer=name, learning_rate=0.05, **options)
    optimizer, expected = OPTIMIZERS[name](ours, spec), peer(theirs, lr=0.05, **options)
    for _ in range(12):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        optimizer.step()
        expected.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
