"""kill -9 of one rank, of rank 0, or of all, at any instant of a refinement: the round commits."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

from fedge.errors import RefineError
from fedge.params import Vector
from fedge.training.local import LocalTrainer
from server.federation import run_federation
from server.refine import GrpcRefiner, InProcessRefiner
from server.settings import RefineConfig
from server.trainer.spec import Refinement, RefineSpec
from tests.tiny_task import TinyTask
from tests.trainer_process import TrainerProcess
from tests.unit.server.fake_grid import Client, FakeGrid, honest
from tests.unit.server.scripted_rounds import configure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TASK = TinyTask()
TRAINER = LocalTrainer(TASK)
ALL = "FEDGE_ALL_KILLS"
NUM_KILLS = 25 if os.environ.get(ALL) else 6  # each costs a restart
SPEC = RefineSpec(learning_rate=0.1, batch_size=7, steps=80, seed=3)
LOSS_S = 0.02  # each step takes as long at least
WORK_S = 2.5  # what a refinement takes, about


class Trainer:
    """A trainer of two ranks at one address, started anew as a service manager would."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._folder = folder
        self._number = 0
        self._num_ready = 1
        self.process = self._start()

    def wait_ready(self) -> None:
        """Return once it serves after the last kill."""
        self.process.wait_ready(times=self._num_ready)

    def kill(self, whom: str) -> None:
        """Kill rank 0, rank 1 or everything, torchrun included."""
        if whom == "all":
            self.process.kill()
            self.process, self._num_ready = self._start(), 1
            return
        self._num_ready += 1
        self.process.kill_rank(int(whom))

    def _start(self) -> TrainerProcess:
        self._number += 1
        return TrainerProcess(
            self._folder / f"{self._number}.log",
            f"address={self.address}",
            f"task.options.loss_s={LOSS_S}",
            "collective_timeout_s=20",
            f"checkpoint_dir={self._folder / 'checkpoints'}",
            "checkpoint_interval_s=0.2",
            ranks=2,
            restarts=100,
        )


@contextmanager
def _trainer(folder: Path) -> Iterator[Trainer]:
    trainer = Trainer(folder)
    try:
        yield trainer
    finally:
        trainer.process.kill()


class Endangered:
    """Refines by a trainer that is killed at some instant each time; checks what comes of it."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._random = np.random.default_rng(5)
        config = RefineConfig(trainer=trainer.address, restart_s=100)
        self._refiner = GrpcRefiner(config, "run", TRAINER.layout, SPEC)
        self.failures: list[str] = []

    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        self._trainer.wait_ready()
        whom = ("0", "1", "all")[round % 3]
        kill = Timer(self._random.uniform(0, WORK_S), self._trainer.kill, [whom])
        kill.start()
        try:
            found = self._refiner.refine(weights, round=round, deadline_s=deadline_s)
        except RefineError as error:
            self.failures.append(str(error))
            raise
        finally:
            kill.join()
        expected = InProcessRefiner(TASK, SPEC).refine(weights, round=round, deadline_s=60)
        np.testing.assert_allclose(found.weights, expected.weights, atol=1e-5)
        assert found.num_steps == SPEC.steps
        return found

    def close(self) -> None:
        self._refiner.close()


def test_every_round_commits_whatever_is_killed_and_few_lose_their_refinement(
    tmp_path: Path,
) -> None:
    refine = {"deadline_s": 120.0}
    config = configure(tmp_path / "run", {"num_rounds": NUM_KILLS}, refine=refine)
    with _trainer(tmp_path) as trainer, closing(Endangered(trainer)) as refiner:
        clients: dict[int, Client] = {1: honest, 2: honest}
        summary = run_federation(FakeGrid(clients), config, task=TASK, refiner=refiner)
    rounds = summary.rounds[1:]
    assert [line["round"] for line in rounds] == list(range(1, NUM_KILLS + 1))
    assert all(line["applied"] and line["num_accepted"] == 2 for line in rounds)
    failed = [line for line in rounds if line["refinement"] == "failed"]
    assert len(failed) == len(refiner.failures) <= 0.2 * NUM_KILLS, refiner.failures
    assert all("the trainer at" in each for each in refiner.failures)
