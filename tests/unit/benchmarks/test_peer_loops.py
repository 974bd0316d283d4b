"""The plain loops that engines are measured against do the work that they stand for."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers import bare_loop, opacus_clients
from benchmarks.peers.rounds import run_rounds
from benchmarks.peers.work import Work, build_model, data_of, start_weights

PEERS = Path(bare_loop.__file__).parent
TINY = Work("mlp", num_clients=4, num_examples=20, num_rounds=2)


def train_by_hand(weights: list[Tensor], inputs: Tensor, targets: Tensor, work: Work) -> Tensor:
    """Two matrix products and their gradients written out, one example after another."""
    w1, b1, w2, b2 = (weight.double() for weight in weights)
    for begin in range(0, work.num_examples, work.batch_size):
        gradients = [torch.zeros_like(weight) for weight in (w1, b1, w2, b2)]
        for index in range(begin, begin + work.batch_size):
            x = inputs[index].double()
            before = w1 @ x + b1
            hidden = before.clamp(min=0)
            wrong = torch.softmax(w2 @ hidden + b2, 0)
            wrong[targets[index]] -= 1
            back = (w2.T @ wrong) * (before > 0)
            parts = (torch.outer(back, x), back, torch.outer(wrong, hidden), wrong)
            for total, part in zip(gradients, parts, strict=True):
                total += part / work.batch_size
        w1, b1, w2, b2 = (
            weight - work.learning_rate * gradient
            for weight, gradient in zip((w1, b1, w2, b2), gradients, strict=True)
        )
    return torch.cat([w1.flatten(), b1, w2.flatten(), b2])


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def test_the_bare_loop_adds_up_what_each_client_comes_to() -> None:
    weights, (inputs, targets) = start_weights(TINY), data_of(TINY)
    expected = sum(train_by_hand(weights, inputs[k], targets[k], TINY) for k in (1, 3))
    found = flat(bare_loop.train_share(TINY, (1, 3), weights))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, 2 * flat(weights), atol=1e-3)


def test_rounds_of_the_bare_loop_run_in_processes_and_are_all_timed() -> None:
    seconds = run_rounds(TINY, bare_loop.train_share)
    assert len(seconds) == TINY.num_rounds
    assert min(seconds) > 0


@pytest.mark.parametrize("mode", ["hooks", "ghost", "functorch", "ew"])
def test_opacus_clips_every_example(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opacus_clients, "NOISE_MULTIPLIER", 0.0)
    monkeypatch.setattr(opacus_clients, "CLIP_NORM", 1e-3)
    opacus_clients._wrapped.cache_clear()
    work = Work("cnn", 1, 20, 1, mode=mode)
    weights = start_weights(work)
    moved = flat(opacus_clients.train_share(work, (0,), weights)) - flat(weights)
    opacus_clients._wrapped.cache_clear()
    # Two steps of about ten examples each, none of which moves it by more than the norm.
    assert 0 < moved.norm() <= 2 * work.learning_rate * 1e-3 * 2


def test_models_have_the_layers_of_the_work() -> None:
    mlp, cnn = (sum(p.numel() for p in build_model(name).parameters()) for name in ("mlp", "cnn"))
    assert mlp == 64 * 64 + 64 + 64 * 10 + 10
    assert cnn == 16 * 25 + 16 + 32 * 16 * 25 + 32 + 1568 * 64 + 64 + 64 * 10 + 10
    outputs = build_model("cnn")(torch.zeros(2, 1, 28, 28))
    assert functional.cross_entropy(outputs, torch.tensor([0, 1])).isfinite()


def test_peers_import_nothing_of_fedge() -> None:
    allowed = {"flwr", "pfl", "opacus", "torch", "benchmarks", *sys.stdlib_module_names}
    for path in PEERS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
                if name.startswith("benchmarks"):
                    assert name.startswith("benchmarks.peers"), f"{path.name} imports {name}"
