"""Federations with personal layers against FedPer written out."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_client.client_app import split_client_data
from fedge.errors import ConfigError
from fedge.personal import Tensors
from fedge.task import Examples
from fedge.training.local import LocalTrainer
from server.checkpoint import CheckpointStore
from simulation.client_state import ClientState
from simulation.clients import training_draws
from simulation.settings import SimulateConfig
from simulation.state_store import StateStore
from tests.unit.simulation.engine.engine_runs import PRIVATE, SEED, MixedTask, configure, run

NUM_CLIENTS, NUM_ROUNDS = 3, 2
BODY, HEAD = ("0.weight", "0.bias"), ("3.weight", "3.bias")
Weights = dict[str, Tensor]


def configured(run_dir: Path, **sections: Any) -> SimulateConfig:
    train = {"personal_layers": ["3.*"], **sections.pop("train", {})}
    rounds = {"num_rounds": NUM_ROUNDS}
    config = configure(run_dir, num_clients=NUM_CLIENTS, rounds=rounds, train=train, **sections)
    return replace(config, holdout_fraction=0.4)


def data(config: SimulateConfig, client: int, split: Any) -> Examples:
    share = config.holdout_fraction
    return split_client_data(MixedTask(), client, NUM_CLIENTS, split, holdout_fraction=share)


def loss(weights: Weights, inputs: Tensor, targets: Tensor, *, mu: float, body: Weights) -> Tensor:
    hidden = torch.tanh(inputs @ weights["0.weight"].T + weights["0.bias"])
    outputs = hidden @ weights["3.weight"].T + weights["3.bias"]
    pull = sum(((weights[name] - body[name]) ** 2).sum() for name in BODY)
    return nn.functional.cross_entropy(outputs, targets) + mu / 2 * pull


def descend(
    config: SimulateConfig, client: int, round: int, body: Weights, head: Weights
) -> Weights:
    """Train one client by SGD; its batches are those of the simulation."""
    hyper, examples = config.server.train, data(config, client, "train")
    inputs, targets = torch.tensor(examples.inputs), torch.tensor(examples.targets)
    weights = {name: value.clone() for name, value in {**body, **head}.items()}
    mu = hyper.proximal_mu if hyper.client_term == "fedprox" else 0.0
    draws = training_draws(config, client, round)
    draws.seed()
    for _ in range(hyper.local_epochs):
        for batch in torch.split(draws.permutation(len(inputs)), hyper.batch_size):
            leaves = {name: value.requires_grad_() for name, value in weights.items()}
            value = loss(leaves, inputs[batch], targets[batch], mu=mu, body=body)
            steps = torch.autograd.grad(value, list(leaves.values()))
            weights = {
                name: (leaf - hyper.learning_rate * step).detach()
                for (name, leaf), step in zip(leaves.items(), steps, strict=True)
            }
    return weights


def fedper(config: SimulateConfig) -> tuple[Weights, list[Weights], list[float]]:
    """Return the shared body, each client's head, and the mean holdout loss after each round."""
    trainer = LocalTrainer(MixedTask())
    views = trainer.layout.views(trainer.initial_weights(SEED))
    start = {name: torch.tensor(view) for name, view in views.items()}
    body = {name: start[name] for name in BODY}
    heads = [{name: start[name] for name in HEAD} for _ in range(NUM_CLIENTS)]
    sizes = [len(data(config, client, "train")) for client in range(NUM_CLIENTS)]
    losses = []
    for round in range(1, NUM_ROUNDS + 1):
        after = [descend(config, c, round, body, heads[c]) for c in range(NUM_CLIENTS)]
        heads = [{name: weights[name] for name in HEAD} for weights in after]
        shares = torch.tensor(sizes) / sum(sizes)
        body = {
            name: torch.tensordot(shares, torch.stack([each[name] for each in after]), dims=1)
            for name in BODY
        }
        losses.append(holdout_loss(config, body, heads))
    return body, heads, losses


def holdout_loss(config: SimulateConfig, body: Weights, heads: list[Weights]) -> float:
    total, count = 0.0, 0
    for client, head in enumerate(heads):
        holdout = data(config, client, "holdout")
        inputs, targets = torch.tensor(holdout.inputs), torch.tensor(holdout.targets)
        mean = loss({**body, **head}, inputs, targets, mu=0.0, body=body)
        total, count = total + float(mean) * len(holdout), count + len(holdout)
    return total / count


def stored(config: SimulateConfig) -> list[Tensors]:
    """Return each client's personal part after a run."""
    path, server = config.server.run_dir / "clients.db", config.server
    with closing(StateStore(path, last_committed=99, limit_bytes=1 << 20)) as store:
        states = store.get(range(NUM_CLIENTS))
    memories = [ClientState(c, states[c]).state(server.run_name) for c in range(NUM_CLIENTS)]
    return [memory["personal"] for memory in memories]


def assert_same(found: Tensors, expected: Weights) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("cohorts", [True, False], ids=["cohorts", "messages"])
@pytest.mark.parametrize("train", [{}, {"client_term": "fedprox", "proximal_mu": 2.0}])
def test_a_federation_is_fedper_written_out(
    tmp_path: Path, cohorts: bool, train: dict[str, Any]
) -> None:
    config = configured(tmp_path, engine={"cohorts": cohorts}, train=train)
    found = run(config)
    body, heads, losses = fedper(config)
    trainer = LocalTrainer(MixedTask())
    initial = trainer.layout.views(trainer.initial_weights(SEED))
    globally = trainer.layout.views(found.weights)
    assert_same(globally, body)
    for name in HEAD:
        assert globally[name].tobytes() == initial[name].tobytes()
    for own, head in zip(stored(config), heads, strict=True):
        assert sorted(own) == sorted(HEAD)
        assert_same(own, head)
    measured = [entry["evaluation"]["loss"] for entry in found.rounds]
    np.testing.assert_allclose(measured, losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cohorts", [True, False], ids=["cohorts", "messages"])
def test_under_dp_every_client_has_a_head_of_its_own_and_spends_what_it_would_without(
    tmp_path: Path, cohorts: bool
) -> None:
    engine = {"cohorts": cohorts}
    config = configured(tmp_path / "own", engine=engine, privacy=PRIVATE)
    found = run(config)
    without: dict[str, Any] = {"personal_layers": []}
    shared = run(configured(tmp_path / "none", engine=engine, privacy=PRIVATE, train=without))
    assert [entry["epsilon"] for entry in found.rounds] == [
        entry["epsilon"] for entry in shared.rounds
    ]
    heads = stored(config)
    for name in HEAD:
        assert len({head[name].tobytes() for head in heads}) == NUM_CLIENTS
    assert found.weights.tobytes() != shared.weights.tobytes()


@pytest.mark.parametrize("pattern", ["head.*", "*"])
def test_patterns_that_do_not_fit_the_model_end_a_run_before_it_begins(
    tmp_path: Path, pattern: str
) -> None:
    with pytest.raises(ConfigError, match=r"^train\.personal_layers: .*0\.weight, 0\.bias"):
        run(configured(tmp_path, train={"personal_layers": [pattern]}))
    assert CheckpointStore(tmp_path / "checkpoints").latest() is None


def test_two_workers_train_and_measure_what_one_does(tmp_path: Path) -> None:
    one, two = (
        run(
            configure(
                tmp_path / str(workers),
                num_clients=70,
                rounds={"num_rounds": 2},
                train={"personal_layers": ["3.*"]},
                engine={"workers": workers},
            )
        )
        for workers in (1, 2)
    )
    assert one.digests == two.digests
    measured = [entry["evaluation"]["loss"] for entry in one.rounds]
    assert measured == [entry["evaluation"]["loss"] for entry in two.rounds]
    assert measured[1] < measured[0]
