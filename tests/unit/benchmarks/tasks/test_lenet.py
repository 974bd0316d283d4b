"""MNIST dealt out as NIID-Bench does."""

import numpy as np
import pytest
import torch

from benchmarks.tasks.lenet import DIRICHLET, IID, MnistLenet, deal_by_label
from benchmarks.tasks.mnist_writers import FOLDER
from fedge.errors import TaskError
from fedge.task import Task

needs_mnist = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not there")


@needs_mnist
@pytest.mark.parametrize("partition", [IID, DIRICHLET])
def test_every_training_image_belongs_to_one_client(partition: str) -> None:
    task = MnistLenet(partition=partition)
    assert isinstance(task, Task)
    clients = [task.client_data(client, 10) for client in range(10)]
    images = {image.tobytes() for client in clients for image in client.inputs}
    sizes = [len(client) for client in clients]
    assert sum(sizes) == len(images) == 60_000
    if partition == IID:
        assert set(sizes) == {6000}
    else:
        assert min(sizes) >= 10
        assert max(sizes) > 1.5 * min(sizes)
    assert len(task.cloud_data().test) == 10_000


@needs_mnist
def test_labels_are_skewed_by_dirichlet_alone_and_the_seed_draws_them() -> None:
    def skew(task: MnistLenet) -> float:
        """Return the mean share of each client's most frequent label."""
        counts = [np.bincount(task.client_data(client, 10).targets) for client in range(10)]
        return float(np.mean([count.max() / count.sum() for count in counts]))

    one = MnistLenet(partition=DIRICHLET, num_train=5000)
    assert skew(MnistLenet(num_train=5000)) < 0.2 < skew(one)
    again = MnistLenet(partition=DIRICHLET, num_train=5000).client_data(3, 10)
    np.testing.assert_array_equal(one.client_data(3, 10).targets, again.targets)
    other = MnistLenet(partition=DIRICHLET, num_train=5000, seed=1).client_data(3, 10)
    assert len(again) != len(other) or (again.targets != other.targets).any()


def test_who_has_an_equal_share_gets_none_of_the_labels_after() -> None:
    targets = np.repeat(np.arange(20), 50)
    for seed in range(10):
        parts = deal_by_label(targets, 5, 0.3, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
        for part in parts:
            *before, _ = np.unique(targets[part])
            # Rounding may leave one example of a label with the last client.
            assert np.isin(targets[part], before).sum() < 200 + 20


@needs_mnist
def test_the_model_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = MnistLenet().build_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 44_426
    one, other, *linear = [layer for layer in model.modules() if list(layer.parameters(False))]
    images = torch.rand(3, 1, 28, 28)
    functional = torch.nn.functional
    hidden = functional.max_pool2d(one(images).relu(), 2)
    hidden = functional.max_pool2d(other(hidden).relu(), 2).flatten(1)
    expected = linear[2](linear[1](linear[0](hidden).relu()).relu())
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


@needs_mnist
def test_what_cannot_be_dealt_is_refused() -> None:
    with pytest.raises(TaskError, match="one of iid, dirichlet, got 'shards'"):
        MnistLenet(partition="shards")
    with pytest.raises(TaskError, match=r"client 10 is not one of 0\.\.9"):
        MnistLenet().client_data(10, 10)
    with pytest.raises(TaskError, match="take fewer clients"):
        MnistLenet(num_train=90).client_data(0, 10)
