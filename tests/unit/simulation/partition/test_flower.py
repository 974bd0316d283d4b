"""Partitioners of flwr-datasets and sources of Hugging Face, without and with their libraries.

The stand-ins have the members that the real ones document; the last tests use the real ones.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError, TaskError
from simulation.partition.flower import FlowerPartitioner
from simulation.partition.settings import DataConfig
from simulation.partition.task import PartitionedTask, partitioned_task
from tests.unit.simulation.partition.pools import PoolTask, make_pool

SIZE = PoolTask.num_pool


class StandInDataset:
    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = {name: np.asarray(values) for name, values in columns.items()}

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    @classmethod
    def from_dict(cls, columns: dict[str, Any]) -> "StandInDataset":
        return cls(columns)

    def with_format(self, kind: str) -> "StandInDataset":
        assert kind == "numpy"
        return self

    def select_columns(self, names: list[str]) -> "StandInDataset":
        return StandInDataset({name: self.columns[name] for name in names})

    def __getitem__(self, rows: slice) -> dict[str, Any]:
        return {name: values[rows] for name, values in self.columns.items()}


class EveryNthPartitioner:
    """Partition i has rows i, i + n, ...; refuses a column that is not there."""

    def __init__(self, num_partitions: int, partition_by: str, seed: int = 42) -> None:
        if num_partitions < 2:
            raise ValueError("too few partitions")
        self.num_partitions = num_partitions
        self.partition_by = partition_by
        self.dataset: Any = None

    def is_dataset_assigned(self) -> bool:
        return self.dataset is not None

    def load_partition(self, partition_id: int) -> StandInDataset:
        if self.partition_by not in self.dataset.columns:
            raise ValueError(f"no column {self.partition_by}")
        rows = self.dataset.columns["index"][partition_id :: self.num_partitions]
        return StandInDataset({"index": rows})


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Put stand-ins in the place of datasets and flwr-datasets."""
    datasets = SimpleNamespace(Dataset=StandInDataset)
    partitioner = SimpleNamespace(EveryNthPartitioner=EveryNthPartitioner)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setitem(sys.modules, "flwr_datasets", SimpleNamespace(partitioner=partitioner))
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", partitioner)
    return datasets


def flower_task(name: str = "flwr:EveryNthPartitioner", clients: int = 7, **options: Any) -> Any:
    config = DataConfig(source="task", partitioner=name, partitioner_options=options)
    return partitioned_task(config, PoolTask(), clients, 0)


def test_a_partitioner_is_named_and_gets_what_its_options_leave_out(libraries: Any) -> None:
    task = flower_task()
    for client in range(7):
        expected = np.arange(client, SIZE, 7)
        np.testing.assert_array_equal(task.client_data(client, 7).inputs[:, 0], expected)
        assert task.num_examples(client, 7) == len(expected)


def test_options_go_to_the_partitioner(libraries: Any) -> None:
    task = flower_task(num_partitions=10)
    np.testing.assert_array_equal(task.client_data(1, 7).inputs[:, 0], np.arange(1, SIZE, 10))


def test_a_partitioner_object_is_taken_as_well(libraries: Any) -> None:
    config = DataConfig(source="task")
    made = EveryNthPartitioner(4, "label")
    task = PartitionedTask(config, PoolTask(), 4, 0, FlowerPartitioner(config, made))
    np.testing.assert_array_equal(task.client_data(3, 4).inputs[:, 0], np.arange(3, SIZE, 4))


@pytest.mark.parametrize(
    ("name", "options", "pattern"),
    [
        ("flwr:Nth", {}, r"^data\.partitioner: .*no partitioner 'Nth'; it has: EveryNth"),
        ("flwr:EveryNthPartitioner", {"depth": 1}, r"^data\.partitioner_options: .*'depth'"),
        ("flwr:EveryNthPartitioner", {"num_partitions": 1}, "too few partitions"),
        ("flwr:EveryNthPartitioner", {"num_partitions": 3}, "^num_clients: 7 clients.*makes 3"),
        ("flwr:EveryNthPartitioner", {"partition_by": "x"}, r"failed for client 2: .*no column x"),
        ("flwr:EveryNthPartitioner", {"num_partitions": 99}, "gives client 61 0 examples"),
    ],
)
def test_what_a_partitioner_cannot_do_is_named(
    libraries: Any, name: str, options: dict[str, Any], pattern: str
) -> None:
    clients = 7 if options.get("num_partitions") != 99 else 62
    with pytest.raises(ConfigError, match=pattern):
        flower_task(name, clients, **options).client_data(2 if clients == 7 else 61, clients)


@pytest.mark.parametrize("missing", ["flwr_datasets.partitioner", "datasets"])
def test_without_the_library_it_says_what_to_install(
    libraries: Any, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"^data\.partitioner: .*pip install flwr-datasets"):
        flower_task()


def test_without_datasets_a_hub_source_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"^data\.source: 'hf:mnist'.*pip install datasets"):
        partitioned_task(DataConfig(source="hf:mnist"), PoolTask(), 2, 0)


def test_a_hub_source_is_read_by_column(libraries: Any) -> None:
    def load_dataset(name: str, split: str) -> StandInDataset:
        assert (name, split) == ("org/name", "validation")
        pool = make_pool(8).examples
        return StandInDataset({"x": pool.inputs, "label": pool.targets, "who": ["b", "a"] * 4})

    libraries.load_dataset = load_dataset
    config = DataConfig(
        source="hf:org/name",
        split="validation",
        inputs=("x",),
        target="label",
        key="who",
        partitioner="natural",
    )
    task = partitioned_task(config, PoolTask(), 2, 0)
    np.testing.assert_array_equal(task.client_data(0, 2).inputs[:, 0], [1, 3, 5, 7])


def test_lists_of_different_lengths_are_refused(libraries: Any) -> None:
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros(2), np.zeros(1)]
    columns = {"x": ragged, "target": [0, 1]}
    libraries.load_dataset = lambda *_, **__: StandInDataset(columns)
    with pytest.raises(TaskError, match=r"hf:some: x holds lists of different lengths"):
        partitioned_task(DataConfig(source="hf:some"), PoolTask(), 2, 0)


def test_a_data_set_that_cannot_be_had_is_named(libraries: Any) -> None:
    def load_dataset(name: str, split: str) -> StandInDataset:
        raise ConnectionError("offline")

    libraries.load_dataset = load_dataset
    with pytest.raises(
        ConfigError, match=r"^data\.source: .*'some'.*ConnectionError: offline.*save_to_disk"
    ):
        partitioned_task(DataConfig(source="hf:some"), PoolTask(), 2, 0)


def test_the_real_partitioners_cover_every_example() -> None:
    pytest.importorskip("flwr_datasets", reason="flwr-datasets is not installed")
    for name, options in (("IidPartitioner", {}), ("DirichletPartitioner", {"alpha": 1.0})):
        task = flower_task(f"flwr:{name}", 3, **options)
        seen = [task.client_data(client, 3).inputs[:, 0] for client in range(3)]
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(SIZE))


def test_a_real_saved_data_set_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    pool = make_pool(9).examples
    columns = {"x": pool.inputs.tolist(), "target": pool.targets.tolist()}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    config = DataConfig(source=f"hf:{tmp_path / 'saved'}", partitioner="time-drift")
    task = partitioned_task(config, PoolTask(), 3, 0)
    np.testing.assert_array_equal(task.client_data(2, 3).inputs, pool.inputs[6:])
