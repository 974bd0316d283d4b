"""Ray actors on two nodes give the very model that this process alone gives.

The cluster is a real one of two nodes on this machine, with folder and ports of its own.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedge.errors import ConfigError, TaskError, TransportError
from fedge.task import Examples
from fedge.training.backend_choice import read_choice
from fedge.training.cohort_contracts import BACKENDS
from simulation.engine.ray_pool import RayPool
from tests.unit.simulation.engine.engine_runs import MixedTask, configure, run

pytestmark = pytest.mark.slow

NUM_CLIENTS = 80  # three shards
OBJECT_STORE_BYTES = 100 << 20
WAIT_S = 30.0


@dataclass(frozen=True)
class TogetherTask(MixedTask):
    """Every client waits until clients are at work on two nodes.

    Attributes:
        folder: takes a note of each node.
    """

    folder: Path = Path()

    def client_data(self, client: int, num_clients: int) -> Examples:
        import ray

        (self.folder / ray.get_runtime_context().get_node_id()).touch()
        deadline = time.monotonic() + WAIT_S
        while len(list(self.folder.iterdir())) < 2:
            if time.monotonic() > deadline:
                raise TaskError("no other node took part")
            time.sleep(0.01)
        return super().client_data(client, num_clients)


@dataclass(frozen=True)
class DeadlyTask(MixedTask):
    """Kills whoever trains client 40, as the kernel would.

    Attributes:
        folder: takes a note of each killed process.
        num_deaths: after which it stops.
    """

    folder: Path = Path()
    num_deaths: int = 1

    def client_data(self, client: int, num_clients: int) -> Examples:
        if client == 40 and len(list(self.folder.iterdir())) < self.num_deaths:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().client_data(client, num_clients)


class StuckTask(MixedTask):
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("it holds a socket")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes of one CPU each; Ray in other processes cannot come across them."""
    import ray

    folder = tempfile.mkdtemp(prefix="fr", dir="/tmp")  # names of sockets must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        made = start_cluster()
        try:
            yield made.address
        finally:
            ray.shutdown()
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def start_cluster(tries: int = 3) -> Any:
    """Start both nodes; Ray gives each 30 s, which a busy machine's first start can exceed."""
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    made = Cluster()
    try:
        for _ in range(2):
            made.add_node(**node, include_dashboard=False)
    except Exception as error:
        made.shutdown()  # type: ignore[no-untyped-call]
        if tries == 1 or "timed out during startup" not in str(error):
            raise
        return start_cluster(tries - 1)
    return made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Digests of the models that this process alone trains."""
    config = configure(tmp_path_factory.mktemp("alone"), num_clients=NUM_CLIENTS)
    return run(config).digests


def test_actors_on_both_nodes_train_the_same_model(
    cluster: str, alone: list[str], tmp_path: Path
) -> None:
    engine = {"ray": cluster, "workers": 0}
    notes = tmp_path / "notes"
    notes.mkdir()
    config = configure(tmp_path / "run", num_clients=NUM_CLIENTS, engine=engine)
    assert run(config, TogetherTask(folder=notes)).digests == alone
    assert len(list(notes.iterdir())) == 2


def test_a_killed_actor_is_replaced_and_changes_nothing(
    cluster: str, alone: list[str], tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    engine = {"ray": cluster, "workers": 0}
    config = configure(tmp_path / "run", num_clients=NUM_CLIENTS, engine=engine)
    assert run(config, DeadlyTask(folder=notes)).digests == alone
    assert len(list(notes.iterdir())) == 1


def test_a_run_that_kills_every_actor_ends_the_simulation(cluster: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    engine = {"ray": cluster, "workers": 1}
    config = configure(tmp_path / "run", num_clients=NUM_CLIENTS, engine=engine)
    with pytest.raises(TransportError, match=r"clients \d+ to \d+ .*engine\.memory_mib"):
        run(config, DeadlyTask(folder=notes, num_deaths=9))
    assert len(list(notes.iterdir())) == 2


def test_the_backend_that_was_measured_once_is_kept(cluster: str, tmp_path: Path) -> None:
    engine = {"ray": cluster, "workers": 0, "backend": "auto"}
    run(configure(tmp_path, num_clients=NUM_CLIENTS, engine=engine))
    choice = read_choice(tmp_path / "backends", "ray")
    assert choice is not None
    BACKENDS[choice.name]


def test_the_cluster_that_was_joined_stays(cluster: str, tmp_path: Path) -> None:
    config = configure(tmp_path, engine={"ray": cluster, "workers": 0})
    for _ in range(2):
        with closing(RayPool(config, MixedTask())) as pool:
            assert pool.num_workers == 2


def test_actors_that_fit_nowhere_are_refused(cluster: str, tmp_path: Path) -> None:
    config = configure(tmp_path, engine={"ray": cluster, "ray_cpus": 2.0})
    with pytest.raises(ConfigError, match=r"lower engine\.ray_cpus"):
        RayPool(config, MixedTask())


def test_a_task_that_cannot_travel_is_refused(cluster: str, tmp_path: Path) -> None:
    config = configure(tmp_path, engine={"ray": cluster})
    with pytest.raises(TaskError, match="it holds a socket"):
        RayPool(config, StuckTask())


def test_a_cluster_can_be_started_for_one_run(
    cluster: str, alone: list[str], tmp_path: Path
) -> None:
    engine = {"ray": "local", "workers": 0}
    assert run(configure(tmp_path, num_clients=NUM_CLIENTS, engine=engine)).digests == alone
