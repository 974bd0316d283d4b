"""What the caller of a job learns of how it ended."""

from collections.abc import Iterator

import pytest
from torch import Tensor

from fedge.errors import RefineError
from fedge.training.local import LocalTrainer
from server.trainer.alone import refining_alone
from server.trainer.jobs import Job, JobRunner
from server.trainer.loop import Control
from server.trainer.ranks import Solo
from server.trainer.spec import CutShort, RefineSpec
from tests.tiny_task import TinyTask

TASK = TinyTask()
WEIGHTS = LocalTrainer(TASK).initial_weights(0)
JOB = Job(RefineSpec(steps=5))


class OtherLeaves(Solo):
    """Another rank is told to stop before the first step."""

    size = 2

    def add_up(self, buffer: Tensor) -> None:
        buffer[0] += 1


@pytest.fixture
def runner() -> Iterator[JobRunner]:
    refining = refining_alone(TASK)
    refining.ranks = OtherLeaves()
    runner = JobRunner(refining)
    yield runner
    runner.close()


def test_a_rank_that_is_told_to_stop_is_lost_and_may_come_back(runner: JobRunner) -> None:
    with pytest.raises(CutShort, match="another rank was told to stop"):
        runner.start(JOB, WEIGHTS, Control()).result()


def test_a_caller_that_leaves_has_cancelled(runner: JobRunner) -> None:
    answers = iter([False])  # it leaves after the job began
    control = Control(should_stop=lambda: next(answers, True))
    with pytest.raises(RefineError, match="cancelled after 0 of 5 steps") as caught:
        runner.start(JOB, WEIGHTS, control).result()
    assert not isinstance(caught.value, CutShort)
