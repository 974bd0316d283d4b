import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fedge.errors import ConfigError, TaskError
from fedge.task import Examples, Split, Task, load_task
from fedge.tasks import digits
from fedge.tasks.digits import Digits
from fedge.weights import check_model, layout_of

NUM_IMAGES = 1797


def rows(examples: Examples) -> list[bytes]:
    return [row.tobytes() for row in examples.inputs]


def test_it_is_a_task_that_loads_by_its_reference_with_toml_options() -> None:
    task = load_task("fedge.tasks.digits:Digits", seed=3, num_proxy=40, alpha=1.0)
    assert isinstance(task, Task)
    assert len(task.cloud_data().proxy) == 40
    with pytest.raises(ConfigError, match="num_prox"):
        load_task("fedge.tasks.digits:Digits", num_prox=40)


def test_every_image_is_in_exactly_one_share() -> None:
    task = Digits(seed=5)
    cloud = task.cloud_data()
    clients = [task.client_data(client, 4) for client in range(4)]
    shares = [cloud.proxy, cloud.gate, cloud.test, *clients]
    together = sorted(row for share in shares for row in rows(share))
    assert [len(cloud.proxy), len(cloud.gate), len(cloud.test)] == [80, 80, 300]
    assert together == sorted(rows(digits._load_images()))
    assert len(together) == NUM_IMAGES


def test_cloud_shares_hold_every_label_equally_often() -> None:
    cloud = Digits(seed=1).cloud_data()
    for share in (cloud.proxy, cloud.gate, cloud.test):
        assert set(np.bincount(share.targets, minlength=10)) == {len(share) // 10}


@pytest.mark.parametrize("num_clients", [1, 2, 4, 10, 50])
def test_every_client_has_images_and_all_are_dealt(num_clients: int) -> None:
    task = Digits(seed=2)
    sizes = [len(task.client_data(client, num_clients)) for client in range(num_clients)]
    assert sum(sizes) == NUM_IMAGES - 460
    assert min(sizes) >= 1
    if num_clients <= 4:
        assert min(sizes) >= sum(sizes) // (2 * num_clients)


def test_images_are_dealt_once_and_not_once_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    task, deal, calls = Digits(), Digits._split_clients, []

    def counted(self: Digits, num_clients: int) -> object:
        calls.append(num_clients)
        return deal(self, num_clients)

    monkeypatch.setattr(Digits, "_split_clients", counted)
    sizes = [[len(task.client_data(client, num)) for client in range(num)] for num in (20, 7, 20)]
    assert calls == [20, 7, 20]
    assert sizes[0] == sizes[2]


def test_clients_differ_more_the_smaller_alpha_is() -> None:
    def spread(alpha: float) -> float:
        task = Digits(seed=0, alpha=alpha)
        counts = np.stack(
            [np.bincount(task.client_data(c, 4).targets, minlength=10) for c in range(4)]
        )
        return float((counts / counts.sum(axis=1, keepdims=True)).std(axis=0).mean())

    assert spread(0.3) > 3 * spread(100.0)


def test_shares_follow_from_the_seed_alone() -> None:
    first, again, other = Digits(seed=7), Digits(seed=7), Digits(seed=8)
    assert rows(first.client_data(2, 4)) == rows(again.client_data(2, 4))
    assert rows(first.cloud_data().proxy) == rows(again.cloud_data().proxy)
    assert rows(first.cloud_data().proxy) != rows(other.cloud_data().proxy)


def test_inputs_are_float32_in_the_unit_interval_and_targets_int64() -> None:
    share = Digits().cloud_data().test
    assert share.inputs.dtype == np.float32
    assert share.inputs.shape == (300, 64)
    assert share.inputs.min() == 0.0
    assert share.inputs.max() == 1.0
    assert share.targets.dtype == np.int64


def test_the_model_maps_pixels_to_logits_and_can_be_trained_privately() -> None:
    model = check_model(Digits().build_model())
    assert layout_of(model).size == 64 * 64 + 64 + 64 * 10 + 10
    assert model(torch.zeros(3, 64)).shape == (3, 10)


def test_loss_is_one_cross_entropy_an_example_and_accuracy_a_share() -> None:
    task = Digits()
    outputs = torch.zeros(4, 10)
    outputs[0, 3] = 100.0
    targets = torch.tensor([3, 1, 1, 0])
    expected = [0.0, np.log(10), np.log(10), np.log(10)]
    np.testing.assert_allclose(task.loss(outputs, targets).numpy(), expected, rtol=1e-6)
    assert task.metrics(outputs, targets) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_proxy": 0}, "num_proxy must be >= 1, got 0"),
        ({"depth": 0}, "depth must be >= 1, got 0"),
        ({"alpha": 0.0}, "alpha must be > 0"),
        ({"alpha": float("nan")}, "alpha must be > 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(TaskError, match=text):
        Digits(**options)  # type: ignore[arg-type]


def test_shares_that_leave_clients_nothing_are_refused() -> None:
    with pytest.raises(TaskError, match="is 2160, which leaves the clients none of the 1797"):
        Digits(num_test=2000).cloud_data()


@pytest.mark.parametrize(
    ("client", "num_clients", "text"),
    [(4, 4, "not one of 0..3"), (-1, 4, "not one of"), (0, 1337, "take fewer clients")],
)
def test_clients_that_cannot_be_are_refused(client: int, num_clients: int, text: str) -> None:
    with pytest.raises(TaskError, match=text):
        Digits().client_data(client, num_clients)


@dataclass(frozen=True)
class Stored:
    """A sample store that returns what it was given."""

    examples: Examples

    def labelled(self, split: Split) -> Examples:
        assert split == "train"
        return self.examples


def test_a_device_trains_on_its_own_samples() -> None:
    stored = Examples(np.full((2, 8, 8), 0.5), np.array([[3.0], [9.0]]))
    found = Digits().device_data(Stored(stored), "train")
    assert found.inputs.shape == (2, 64)
    assert found.inputs.dtype == np.float32
    assert found.targets.tolist() == [3, 9]
    empty = Digits().device_data(Stored(Examples(np.zeros((0,)), np.zeros((0,)))), "train")
    assert len(empty) == 0
    assert empty.inputs.shape == (0, 64)


@pytest.mark.parametrize(
    ("inputs", "targets", "text"),
    [
        (np.zeros((1, 63)), np.zeros(1), "63 values and 1 labels; expected 64 and 1"),
        (np.zeros((1, 64)), np.zeros((1, 2)), "64 values and 2 labels"),
        (np.zeros((1, 64)), np.array([10]), "labels run from 10 to 10"),
        (np.zeros((1, 64)), np.array([-1]), "labels run from -1"),
        (np.zeros((1, 64)), np.array([2.5]), "whole numbers"),
    ],
)
def test_stored_samples_that_are_no_digits_are_refused(
    inputs: np.ndarray, targets: np.ndarray, text: str
) -> None:
    with pytest.raises(TaskError, match=text):
        Digits().device_data(Stored(Examples(inputs, targets)), "train")


def test_a_missing_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    digits._load_images.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(TaskError, match="pip install scikit-learn"):
        Digits().cloud_data()


def test_edge_files_are_there_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "_EDGE_FOLDER", tmp_path)
    assert Digits().edge_files() is None
    for name in ("template.tflite", "plan.json"):
        (tmp_path / name).write_bytes(b"x")
    files = Digits().edge_files()
    assert files is not None
    assert files.plan.name == "plan.json"


def test_other_sizes_make_another_model_and_ship_no_template() -> None:
    small = Digits(width=8, depth=3)
    assert layout_of(small.build_model()).size == 64 * 8 + 8 + 2 * (8 * 8 + 8) + 8 * 10 + 10
    assert small.edge_files() is None
    assert Digits(width=64, depth=1).edge_files() == Digits().edge_files()
