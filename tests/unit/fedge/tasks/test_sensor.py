from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fedge.errors import TaskError
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.task import Examples, Split, Task, load_task
from fedge.tasks import sensor
from fedge.tasks.sensor import GRAVITY, STATES, WINDOWS, Sensor
from fedge.tflite.patch import Patcher
from fedge.tflite.runner import Runner
from fedge.training.local import LocalTrainer
from fedge.weights import check_model, layout_of, write_vector
from fedge.windows import Readings, Windower

TASK = Sensor()


@dataclass(frozen=True)
class Stored:
    """A sample store that returns what it was given."""

    examples: Examples

    def labelled(self, split: Split) -> Examples:
        assert split == "train"
        return self.examples


def test_it_is_a_task_that_loads_by_its_reference() -> None:
    task = load_task("fedge.tasks.sensor:Sensor", seed=3, num_stretches=4)
    assert isinstance(task, Task)
    assert len(task.client_data(0, 1)) == (4 * 320 - 64) // 32 + 1


def test_training_data_are_the_windows_that_a_device_cuts_from_the_same_readings() -> None:
    readings, states = TASK.record("clients", 3)
    windower = Windower(WINDOWS)
    windows = []
    for begin in range(0, len(readings), 50):
        here = slice(begin, begin + 50)
        part = Readings(readings.values[here], readings.sequences[here], readings.times_s[here])
        windows += windower.push(part)
    examples = TASK.client_data(3, 10)
    assert np.stack([w.inputs for w in windows]).tobytes() == examples.inputs.tobytes()
    assert examples.targets.tolist() == [states[w.first + WINDOWS.size - 1] for w in windows]


def test_inputs_are_normalised_by_constants_and_lie_around_zero() -> None:
    share = TASK.cloud_data().test
    assert share.inputs.dtype == np.float32
    assert share.inputs.shape[1:] == TASK.input_shape
    assert np.abs(share.inputs.mean(axis=(0, 1))).max() < 0.5
    assert np.isfinite(share.inputs).all()


def test_machines_differ_and_those_of_the_cloud_are_nobodys() -> None:
    counts = np.stack(
        [
            np.bincount(TASK.client_data(client, 30).targets, minlength=len(STATES))
            for client in range(30)
        ]
    )
    assert (counts.sum(axis=0) > 0).all()
    assert (counts == 0).any()
    rows = [row.tobytes() for part in (TASK.client_data(0, 30), TASK.client_data(1, 30),
            TASK.cloud_data().proxy, TASK.cloud_data().gate, TASK.cloud_data().test)
            for row in part.inputs]  # fmt: skip
    assert len(set(rows)) == len(rows)


def test_data_follow_from_the_seed_alone() -> None:
    again, other = Sensor().client_data(2, 5), Sensor(seed=1).client_data(2, 5)
    assert again.inputs.tobytes() == TASK.client_data(2, 5).inputs.tobytes()
    assert other.inputs.tobytes() != again.inputs.tobytes()


def test_a_machine_that_is_off_shows_gravity_however_its_sensor_is_mounted() -> None:
    lengths = []
    for machine in range(20):
        readings, states = TASK.record("clients", machine)
        lengths += np.linalg.norm(readings.values[states == 0], axis=1).tolist()
    assert lengths
    assert abs(np.mean(lengths) - GRAVITY) < 0.01


def test_many_machines_teach_what_one_cannot() -> None:
    trainer = LocalTrainer(TASK)
    hyper = Hyperparameters(learning_rate=0.1, momentum=0.9, local_epochs=8, batch_size=32)
    weights, test = trainer.initial_weights(0), TASK.cloud_data().test
    clients = [TASK.client_data(client, 12) for client in range(12)]
    together = Examples(
        np.concatenate([each.inputs for each in clients]),
        np.concatenate([each.targets for each in clients]),
    )
    accuracies = []
    for examples in (clients[0], together):
        result = trainer.train(weights, examples, hyper, draws=Draws.seeded(0))
        accuracies.append(trainer.evaluate(weights + result.delta, test)["accuracy"])
    alone, with_others = accuracies
    assert with_others > alone + 0.15


def test_the_model_can_be_trained_privately() -> None:
    check_model(TASK.build_model())
    trainer, plan = LocalTrainer(TASK), DpPlan(1.0, 0.5, 2, 1.0, 1e-5, 16.0)
    result = trainer.train(
        trainer.initial_weights(0),
        TASK.client_data(0, 1),
        Hyperparameters(),
        draws=Draws.seeded(1),
        plan=plan,
    )
    assert np.isfinite(result.delta).all()
    assert result.num_steps == 2


def test_the_shipped_files_answer_as_torch_does() -> None:
    files = TASK.edge_files()
    assert files is not None
    patcher = Patcher.from_bytes(files.template.read_bytes(), files.plan.read_bytes())
    layout = patcher.plan.layout
    weights = np.random.default_rng(0).normal(0, 0.2, layout.size).astype(np.float32)
    model = TASK.build_model()
    assert layout_of(model) == layout
    write_vector(model, layout, weights)
    inputs = TASK.cloud_data().gate.inputs[:40]
    with torch.inference_mode():
        expected = model(torch.from_numpy(inputs)).numpy()
    found = Runner(patcher.patch(layout, weights)).run(inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_device_trains_on_its_own_windows() -> None:
    windows = np.zeros((2, *TASK.input_shape), np.float32)
    found = TASK.device_data(Stored(Examples(windows, np.array([[3.0], [0.0]]))), "train")
    assert found.targets.tolist() == [3, 0]
    nothing = Stored(Examples(np.zeros(0, np.float32), np.zeros(0)))
    assert TASK.device_data(nothing, "train").inputs.shape == (0, *TASK.input_shape)


@pytest.mark.parametrize(
    ("shape", "target", "text"),
    [
        ((1, 63, 3), [0], r"shape \[63, 3\] and 1 labels; expected \[64, 3\] and 1"),
        ((1, 64, 3), [[0, 1]], "2 labels"),
        ((1, 64, 3), [4], "from 0 to 3"),
        ((1, 64, 3), [-1], "from 0 to 3"),
        ((1, 64, 3), [0.5], "whole numbers"),
    ],
)
def test_stored_samples_that_are_no_windows_are_refused(
    shape: tuple[int, ...], target: list[object], text: str
) -> None:
    stored = Stored(Examples(np.zeros(shape, np.float32), np.array(target)))
    with pytest.raises(TaskError, match=text):
        TASK.device_data(stored, "train")


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 0.5}, {"num_stretches": 0}])
def test_options_that_mean_nothing_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(TaskError, match="sensor"):
        Sensor(**options)


def test_clients_that_cannot_be_are_refused() -> None:
    for client in (-1, 4):
        with pytest.raises(TaskError, match=r"not one of 0\.\.3"):
            TASK.client_data(client, 4)


def test_edge_files_are_there_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor, "_EDGE_FOLDER", tmp_path)
    assert TASK.edge_files() is None
