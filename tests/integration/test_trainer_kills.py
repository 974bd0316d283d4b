"""kill -9 of one rank, of rank 0, or of all, at any instant: refinement goes on or is refused."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

from fedge.errors import RefineError
from fedge.training.local import LocalTrainer
from server.refine import GrpcRefiner, InProcessRefiner
from server.settings import RefineConfig
from server.trainer.spec import RefineSpec
from tests.tiny_task import TinyTask
from tests.trainer_process import TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TASK = TinyTask()
TRAINER = LocalTrainer(TASK)
WEIGHTS = TRAINER.initial_weights(0)
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


def test_kills_at_any_instant_cost_no_refinement_its_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    outcomes: list[str] = []
    with _trainer(tmp_path) as trainer:
        config = RefineConfig(trainer=trainer.address, restart_s=100)
        refiner = GrpcRefiner(config, "run", TRAINER.layout, SPEC)
        for number in range(NUM_KILLS):
            trainer.wait_ready()
            whom = ("0", "1", "all")[number % 3]
            kill = Timer(random.uniform(0, WORK_S), trainer.kill, [whom])
            kill.start()
            try:
                found = refiner.refine(WEIGHTS, round=number, deadline_s=120)
            except RefineError as error:
                outcomes.append(str(error))
            else:
                expected = InProcessRefiner(TASK, SPEC).refine(WEIGHTS, round=number, deadline_s=60)
                np.testing.assert_allclose(found.weights, expected.weights, atol=1e-5)
                assert found.num_steps == SPEC.steps
                outcomes.append("finished")
            kill.join()
    assert len(outcomes) == NUM_KILLS
    assert outcomes.count("finished") >= 0.8 * NUM_KILLS, outcomes
    assert all("the trainer at" in each for each in outcomes if each != "finished")
