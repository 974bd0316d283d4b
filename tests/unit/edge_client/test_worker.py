from __future__ import annotations

import numpy as np
import pytest

from edge_client.worker import InProcessWorker
from fedge.errors import TaskError
from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.settings import Hyperparameters
from fedge.task import Examples, Split
from tests.tiny_task import TinyTask

TASK = TinyTask()
SCAFFOLD = Hyperparameters(local_epochs=1, learning_rate=0.5, client_term="scaffold")


def examples(split: Split) -> Examples:
    return TASK.client_data(0, 1)


@pytest.fixture
def worker() -> InProcessWorker:
    return InProcessWorker(TASK, examples, draws=lambda: Draws.seeded(1))


def delta(worker: InProcessWorker, correction: Vector | None = None) -> Vector:
    weights = worker.trainer.initial_weights(0)
    return worker.train(worker.trainer.layout.digest, weights, SCAFFOLD, None, correction).delta


def test_a_correction_reaches_the_gradients(worker: InProcessWorker) -> None:
    correction = np.linspace(-1, 1, worker.trainer.layout.size).astype(np.float32)
    moved = delta(worker, correction) - delta(worker)
    np.testing.assert_allclose(moved, -SCAFFOLD.learning_rate * correction, atol=1e-6)


def test_a_correction_of_another_length_is_refused(worker: InProcessWorker) -> None:
    with pytest.raises(TaskError, match="control has shape"):
        delta(worker, np.zeros(3, np.float32))
