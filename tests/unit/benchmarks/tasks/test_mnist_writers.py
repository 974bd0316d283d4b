"""MNIST by writer: who holds which images."""

import numpy as np
import pytest
import torch

from benchmarks.harness import CannotRun
from benchmarks.tasks import mnist_writers
from benchmarks.tasks.mnist_writers import FOLDER, MnistWriters
from fedge.errors import TaskError
from fedge.task import Examples, Task

needs_mnist = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not there")


def fingerprints(examples: Examples) -> set[bytes]:
    return {image.tobytes() for image in examples.inputs}


@needs_mnist
def test_clients_are_writers_and_share_no_image_with_the_cloud() -> None:
    task = MnistWriters()
    assert isinstance(task, Task)
    assert task.num_clients == 539 - 24
    clients = [task.client_data(client, task.num_clients) for client in range(task.num_clients)]
    sizes = [len(client) for client in clients]
    assert min(sizes) >= 19
    assert max(sizes) <= 131
    cloud = task.cloud_data()
    assert (len(cloud.proxy), len(cloud.gate), len(cloud.test)) == (600, 600, 10_000)
    everyone = set().union(*map(fingerprints, clients))
    assert len(everyone) == sum(sizes)
    shares = [everyone, *map(fingerprints, (cloud.proxy, cloud.gate, cloud.test))]
    assert len(set().union(*shares)) == sum(map(len, shares))
    assert len(np.unique(cloud.proxy.targets)) == 10


@needs_mnist
def test_the_seed_draws_the_cloud_and_options_size_it() -> None:
    one, other = MnistWriters(seed=1, num_proxy=50), MnistWriters(seed=2, num_proxy=50)
    again = MnistWriters(seed=1, num_proxy=50)
    proxy = one.cloud_data().proxy
    assert len(proxy) == 50
    np.testing.assert_array_equal(again.cloud_data().proxy.inputs, proxy.inputs)
    assert fingerprints(other.cloud_data().proxy) != fingerprints(proxy)
    with pytest.raises(TaskError, match="raise num_cloud_writers"):
        MnistWriters(num_proxy=50_000).cloud_data()


@needs_mnist
def test_there_are_no_more_clients_than_writers() -> None:
    task = MnistWriters()
    few = task.client_data(3, 10)
    np.testing.assert_array_equal(few.inputs, task.client_data(3, task.num_clients).inputs)
    for client, num_clients in ((0, 516), (10, 10), (-1, 10)):
        with pytest.raises(TaskError, match=f"client {client} of {num_clients}"):
            task.client_data(client, num_clients)


@needs_mnist
def test_the_model_is_the_usual_cnn() -> None:
    torch.manual_seed(0)
    model = MnistWriters().build_model()
    assert isinstance(model, torch.nn.Sequential)
    assert sum(parameter.numel() for parameter in model.parameters()) == 114_314
    images = torch.rand(3, 1, 28, 28)
    first, second = model[0], model[4]
    functional = torch.nn.functional
    hidden = functional.max_pool2d(functional.relu(functional.conv2d(images, *pair(first))), 2)
    hidden = functional.max_pool2d(functional.relu(functional.conv2d(hidden, *pair(second))), 2)
    expected = model[8:](hidden.flatten(1))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def pair(layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Return a convolution's weight and bias, then stride and padding for `conv2d`."""
    assert isinstance(layer, torch.nn.Conv2d)
    assert layer.bias is not None
    return layer.weight, layer.bias, 1, 2


def test_without_the_files_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_writers, "FOLDER", FOLDER / "nowhere")
    with pytest.raises(CannotRun, match="nowhere is not there"):
        MnistWriters()
