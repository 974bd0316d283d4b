"""The wrapped task: other client data, and everything else as it was."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError, TaskError
from fedge.task import Task
from simulation.partition.contracts import KnowsSizes
from simulation.partition.settings import DataConfig
from simulation.partition.task import PartitionedTask, partitioned_task
from tests.unit.simulation.partition.pools import PoolTask

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"


def wrap(num_clients: int = 5, seed: int = 0, **options: Any) -> Task:
    config = DataConfig(source="task", **{"partitioner": "dirichlet", **options})
    return partitioned_task(config, PoolTask(), num_clients, seed)


def test_without_a_source_the_task_is_left_alone() -> None:
    task = PoolTask()
    assert partitioned_task(DataConfig(), task, 5, 0) is task


def test_it_is_a_task_that_knows_its_sizes() -> None:
    task = wrap()
    assert isinstance(task, Task)
    assert isinstance(task, KnowsSizes)
    for client in range(5):
        assert task.num_examples(client, 5) == len(task.client_data(client, 5))


def test_clients_share_what_the_task_has() -> None:
    task = wrap()
    seen = np.concatenate([task.client_data(client, 5).inputs[:, 0] for client in range(5)])
    np.testing.assert_array_equal(np.sort(seen), np.arange(PoolTask.num_pool))


def test_everything_else_is_the_wrapped_tasks() -> None:
    task: Any = wrap()
    assert (task.name, task.input_shape, task.num_pool) == ("pooled", (2,), 60)
    inner = PoolTask()
    np.testing.assert_array_equal(task.cloud_data().test.inputs, inner.cloud_data().test.inputs)
    assert type(task.build_model()) is type(inner.build_model())
    assert task.edge_files() is None
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = task.no_such_thing


def test_another_process_makes_the_same_partition_from_the_recipe_alone() -> None:
    task = wrap()
    assert len(pickle.dumps(task)) < 2000
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        theirs = executor.submit(task.client_data, 3, 5).result()
    ours = task.client_data(3, 5)
    np.testing.assert_array_equal(theirs.inputs, ours.inputs)
    np.testing.assert_array_equal(theirs.targets, ours.targets)


def test_what_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^num_clients: 61 clients.*60 examples.*at most 60"):
        wrap(num_clients=61)
    with pytest.raises(ConfigError, match=r"^data.partitioner: "):
        wrap(partitioner="no-such")


@pytest.mark.parametrize(
    ("client", "num_clients", "text"),
    [(5, 5, r"not one of 0\.\.4"), (-1, 5, "not one of"), (0, 6, "among 5 clients.*for 6")],
)
def test_a_client_that_was_not_divided_for_is_refused(
    client: int, num_clients: int, text: str
) -> None:
    task = wrap()
    assert isinstance(task, KnowsSizes)
    with pytest.raises(TaskError, match=text):
        task.client_data(client, num_clients)
    with pytest.raises(TaskError, match=text):
        task.num_examples(client, num_clients)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    config = DataConfig(source="/no/such/file.csv", partitioner="iid")
    task = PartitionedTask(config, PoolTask(), 5, 0)
    assert task.name == "pooled"
    with pytest.raises(ConfigError, match="no such file"):
        task.client_data(0, 5)


class Weather(PoolTask):
    """Predict PM2.5 from weather."""

    input_shape = (4,)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_a_station_of_beijing_is_divided_by_time() -> None:
    (path,) = (SHARED / "beijing_air").glob("*Aotizhongxin*.csv.gz")
    options: dict[str, Any] = {
        "source": str(path),
        "inputs": ("TEMP", "PRES", "DEWP", "SO2"),
        "target": "PM2.5",
        "key": "station",
        "time": "No",
        "partitioner": "time-drift",
    }
    with pytest.raises(TaskError, match=r"SO2, row \d+ .* is ' '.*missing_values"):
        partitioned_task(DataConfig(**options, missing="drop"), Weather(), 4, 0)
    options["missing_values"] = (" ",)
    with pytest.raises(TaskError, match=r"PM2\.5, row \d+ .*NaN or missing"):
        partitioned_task(DataConfig(**options), Weather(), 4, 0)
    config = DataConfig(**options, missing="drop", target_dtype="float32")
    years = [partitioned_task(config, Weather(), 4, 0).client_data(i, 4) for i in range(4)]
    sizes = [len(year) for year in years]
    assert max(sizes) - min(sizes) <= 1
    assert 30_000 < sum(sizes) < 35_064
    assert np.isfinite(np.concatenate([year.inputs for year in years])).all()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_the_census_is_divided_by_occupation(tmp_path: Path) -> None:
    import gzip

    rows = gzip.decompress((SHARED / "adult" / "adult.data.gz").read_bytes()).decode().split("\n")
    text = "\n".join(row for row in rows if row)
    names = (
        "age,workclass,fnlwgt,education,education-num,marital,occupation,relationship,race,sex,"
        "gain,loss,hours,country,income"
    )
    path = tmp_path / "adult.csv"
    path.write_text(names + "\n" + text.replace("<=50K", "0").replace(">50K", "1"))
    config = DataConfig(
        source=str(path),
        inputs=("age", "education-num", "gain", "hours"),
        target="income",
        key="occupation",
        missing_values=(" ?",),
        missing="drop",
        target_dtype="int64",
        partitioner="natural",
    )
    task = partitioned_task(config, Weather(), 14, 0)
    clients = [task.client_data(client, 14) for client in range(14)]
    assert min(map(len, clients)) == 9  # the armed forces
    assert sum(map(len, clients)) == 32_561 - 1_843  # rows without an occupation
    rich = [client.targets.mean() for client in clients]
    assert max(rich) > 5 * min(rich)
