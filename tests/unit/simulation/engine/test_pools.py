"""Shards in worker processes: the same results, whatever becomes of a worker."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fedge.errors import TransportError
from fedge.messages import WeightsRequest
from fedge.training.local import LocalTrainer
from server.cohort_round import cohort_request
from server.cohorts import CohortRequest
from server.model_update import ModelUpdate
from server.selection import Cohort
from simulation import runner
from simulation.engine.contracts import SHARD_SIZE, Run, ShardResult
from simulation.engine.pools import InlinePool, make_pool
from simulation.engine.processes import ProcessPool
from simulation.engine.shard_runner import measurements_folder
from simulation.nodes import node_of
from simulation.settings import SimulateConfig
from tests.unit.simulation.engine import engine_runs
from tests.unit.simulation.engine.engine_runs import DeadlyTask, MixedTask, Tree, configure

MANY = 3 * SHARD_SIZE + 4
RUNS = [Run(tuple(range(at, at + 8))) for at in range(0, 40, 8)]


def request_to(config: SimulateConfig, task: MixedTask, round: int = 1) -> CohortRequest:
    trainer, server = LocalTrainer(task), config.server
    weights = trainer.initial_weights(round)
    asked = WeightsRequest("run", round, 9, trainer.layout, weights, server.train, codec="raw")
    cohort = Cohort(tuple(map(node_of, range(config.num_clients))), config.num_clients)
    update = ModelUpdate(server, trainer.layout)
    return cohort_request(update, asked, cohort, 60.0, {}, config.num_clients)


def sums_of(results: Sequence[list[ShardResult]]) -> list[bytes]:
    """Return the sums of each shard, to compare bit by bit."""
    return [shard.partial.state.total.tobytes() for shards in results for shard in shards]


def alone(config: SimulateConfig, task: MixedTask, request: CohortRequest) -> list[bytes]:
    return sums_of(list(InlinePool(config, task).train(request, RUNS)))


def processes(num_workers: int) -> Callable[[SimulateConfig, MixedTask], ProcessPool]:
    return lambda config, task: ProcessPool(config, task, num_workers)


def assert_no_children() -> None:
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_the_number_of_workers_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Tree] = {
        "rounds": {"num_rounds": 2},
        "aggregation": {"aggregator": "bounded-mean"},
    }
    expected = engine_runs.run(configure(tmp_path / "0", num_clients=MANY, **sections))
    for num_workers in (1, 2, 3):
        monkeypatch.setattr(runner, "make_pool", processes(num_workers))
        config = configure(tmp_path / str(num_workers), num_clients=MANY, **sections)
        found = engine_runs.run(config)
        assert found.digests == expected.digests
        for one, other in zip(found.rounds, expected.rounds, strict=True):
            assert one["evaluation"] == other["evaluation"]
        assert_no_children()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(tmp_path / "run")
    task = DeadlyTask(driver=os.getpid(), marker=tmp_path / "died")
    request = request_to(config, task)
    with closing(ProcessPool(config, task, 2)) as pool:
        found = sums_of(list(pool.train(request, RUNS)))
    assert (tmp_path / "died").exists()
    assert found == alone(config, task, request)
    assert "ended with -9 while it trained clients 0 to 7" in caplog.text
    assert_no_children()


@pytest.mark.slow
def test_a_worker_that_is_killed_again_ends_the_run_and_says_what_to_do(tmp_path: Path) -> None:
    task = DeadlyTask(driver=os.getpid())
    config = configure(tmp_path)
    pool = ProcessPool(config, task, 1)
    with closing(pool), pytest.raises(TransportError, match=r"clients 0 to 7.*engine\.workers"):
        list(pool.train(request_to(config, task), RUNS))
    assert_no_children()


@pytest.mark.slow
def test_a_reader_that_stops_early_does_not_confuse_the_next_request(tmp_path: Path) -> None:
    config, task = configure(tmp_path), MixedTask()
    first, second = request_to(config, task, 1), request_to(config, task, 2)
    with closing(ProcessPool(config, task, 2)) as pool:
        reader = pool.train(first, RUNS)
        assert sums_of([next(reader)]) == alone(config, task, first)[:1]
        reader.close()  # type: ignore[attr-defined]
        assert sums_of(list(pool.train(second, RUNS))) == alone(config, task, second)
        evaluations = list(pool.evaluate(second.request, RUNS))
        assert evaluations == list(InlinePool(config, task).evaluate(second.request, RUNS))
        with pytest.raises(TransportError, match=r"(?s)a worker process failed:\n.*TypeError"):
            list(pool.train(second, [Run(None)]))  # type: ignore[arg-type]
    pool.close()
    assert_no_children()


@dataclass(frozen=True)
class LocalTask(MixedTask):
    """Holds what cannot be pickled."""

    scale: Callable[[float], float] = lambda value: value


def test_a_task_that_cannot_travel_stays_in_this_process_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(tmp_path, engine={"workers": 4})
    with caplog.at_level(logging.WARNING):
        pool = make_pool(config, LocalTask())
    assert isinstance(pool, InlinePool)
    assert "task mixed stays in one process" in caplog.text


@pytest.mark.parametrize(
    ("num_clients", "cohort_size", "workers", "expected"),
    [
        (1000, SHARD_SIZE, 0, 1),
        (1000, SHARD_SIZE + 1, 0, 2),
        (SHARD_SIZE, 0, 0, 1),
        (10**6, 0, 0, 3),
        (1000, 10, 2, 2),
        (1000, 0, 1, 1),
    ],
)
def test_there_are_as_many_workers_as_the_cohort_has_work_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_clients: int,
    cohort_size: int,
    workers: int,
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    config = configure(
        tmp_path,
        num_clients=num_clients,
        rounds={"cohort_size": cohort_size},
        engine={"workers": workers},
    )
    pool = make_pool(config, MixedTask())
    assert pool.num_workers == expected
    assert isinstance(pool, InlinePool) == (expected == 1)
    pool.close()


def test_this_process_trains_on_one_thread_and_gives_the_others_back(tmp_path: Path) -> None:
    config, task = configure(tmp_path), MixedTask()
    request = request_to(config, task)
    pool = InlinePool(config, task)
    torch.set_num_threads(2)
    readers: list[Any] = [pool.train(request, RUNS), pool.evaluate(request.request, RUNS)]
    for reader in readers:
        next(reader)
        assert torch.get_num_threads() == 1
        reader.close()
        assert torch.get_num_threads() == 2


def test_measurements_are_kept_by_the_run_where_the_home_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert measurements_folder(tmp_path / "run") == cache / "fedge" / "backends"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measurements_folder(tmp_path / "run") == tmp_path / "run" / "backends"
