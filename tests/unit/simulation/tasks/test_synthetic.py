"""Synthetic clients: lazy, skewed and learnable."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from fedge.errors import ConfigError, TaskError
from fedge.task import Task, load_task
from simulation.partition.contracts import KnowsSizes
from simulation.tasks.synthetic import Synthetic

MILLION = 1_000_000


def distance(task: Synthetic, num_clients: int = 200) -> float:
    """Return the mean total variation distance of clients' labels from uniform."""
    distances = []
    for client in range(num_clients):
        labels = task.client_data(client, num_clients).targets
        shares = np.bincount(labels, minlength=task.num_classes) / len(labels)
        distances.append(np.abs(shares - 1 / task.num_classes).sum() / 2)
    return float(np.mean(distances))


def test_it_is_a_task_that_knows_its_sizes() -> None:
    task = load_task("simulation.tasks.synthetic:Synthetic", num_features=8, seed=3)
    assert isinstance(task, Task)
    assert isinstance(task, KnowsSizes)
    assert task.input_shape == (8,)
    for client in (0, 5, MILLION - 1):
        assert task.num_examples(client, MILLION) == len(task.client_data(client, MILLION))


def test_a_client_is_the_same_every_time_and_whatever_their_number() -> None:
    first, second = Synthetic(seed=1), Synthetic(seed=1)
    second.client_data(3, 10)
    one, other = first.client_data(7, 10), second.client_data(7, MILLION)
    np.testing.assert_array_equal(one.inputs, other.inputs)
    np.testing.assert_array_equal(one.targets, other.targets)
    assert one.inputs.dtype == np.float32
    assert not np.array_equal(one.inputs[:5], Synthetic(seed=2).client_data(7, 10).inputs[:5])


def test_a_million_clients_cost_nothing() -> None:
    tracemalloc.start()
    try:
        task = Synthetic()
        for client in range(0, MILLION, MILLION // 50):
            task.client_data(client, MILLION)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_alpha_turns_from_one_label_a_client_to_uniform() -> None:
    skewed, even = (
        Synthetic(alpha=alpha, mean_examples=200, size_sigma=0.0) for alpha in (0.05, 1e6)
    )
    assert distance(skewed) > 0.7
    assert distance(even) < 0.12


def test_sizes_follow_mean_and_spread() -> None:
    sizes = np.array([Synthetic().num_examples(client, MILLION) for client in range(3000)])
    assert sizes.mean() == pytest.approx(50, rel=0.03)
    assert np.log(sizes).std() == pytest.approx(0.3, rel=0.07)
    equal = Synthetic(mean_examples=80, size_sigma=0.0)
    assert {equal.num_examples(client, 256) for client in range(256)} == {80}


def test_inputs_are_normal_about_their_classes_mean() -> None:
    task = Synthetic(mean_examples=5000, size_sigma=0.0, num_classes=3, alpha=100.0)
    clients = [task.client_data(client, 2) for client in range(2)]
    for label in range(3):
        means = [c.inputs[c.targets == label].mean(axis=0) for c in clients]
        np.testing.assert_allclose(means[0], means[1], atol=0.2)
        residue = clients[0].inputs[clients[0].targets == label] - means[0]
        assert residue.std() == pytest.approx(1, rel=0.02)


def test_a_feature_shift_moves_all_of_a_clients_inputs_alike() -> None:
    plain, shifted = Synthetic(), Synthetic(feature_shift=2.0)
    moved = [
        shifted.client_data(client, 9).inputs - plain.client_data(client, 9).inputs
        for client in (0, 1)
    ]
    for each in moved:
        np.testing.assert_allclose(each, np.broadcast_to(each[0], each.shape), atol=1e-5)
        assert each[0].std() == pytest.approx(2.0, rel=0.4)
    assert not np.allclose(moved[0][0], moved[1][0])


def test_a_model_of_the_clients_data_knows_the_clouds() -> None:
    task = Synthetic(num_test=1000)
    cloud = task.cloud_data()
    assert (len(cloud.proxy), len(cloud.gate), len(cloud.test)) == (500, 500, 1000)
    clients = [task.client_data(client, 200) for client in range(200)]
    inputs = np.concatenate([c.inputs for c in clients])
    targets = np.concatenate([c.targets for c in clients])
    means = np.stack([inputs[targets == label].mean(axis=0) for label in range(10)])
    # Closest mean: the best there is for classes of one covariance.
    distances = ((cloud.test.inputs[:, None] - means) ** 2).sum(axis=2)
    accuracy = np.mean(distances.argmin(axis=1) == cloud.test.targets)
    assert 0.6 < accuracy < 0.99
    assert np.bincount(cloud.test.targets).min() > 50


def test_the_model_takes_the_inputs() -> None:
    task = Synthetic(num_features=12, num_classes=4, hidden=5)
    data = task.client_data(0, 1)
    outputs = task.build_model()(torch.from_numpy(data.inputs))
    assert outputs.shape == (len(data), 4)
    targets = torch.from_numpy(data.targets)
    assert task.loss(outputs, targets).shape == (len(data),)
    assert 0 <= task.metrics(outputs, targets)["accuracy"] <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 1},
        {"num_features": 0},
        {"hidden": 0},
        {"mean_examples": 1},
        {"size_sigma": 3.5},
        {"size_sigma": float("nan")},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"separation": -1.0},
        {"feature_shift": float("inf")},
        {"num_test": 0},
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match=f"synthetic: {next(iter(options))} must be"):
        Synthetic(**options)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_clases"):
        load_task("simulation.tasks.synthetic:Synthetic", num_clases=3)


@pytest.mark.parametrize("client", [-1, 5])
def test_a_client_that_is_not_there_is_refused(client: int) -> None:
    with pytest.raises(TaskError, match=r"not one of 0\.\.4"):
        Synthetic().client_data(client, 5)
