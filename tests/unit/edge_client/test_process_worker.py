import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client import process_worker
from edge_client.process_worker import ProcessWorker
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig, TrainingProcessConfig
from edge_client.worker import Ask
from edge_client.worker_frames import ProcessSettings
from fedge.errors import (
    BudgetExhausted,
    ConfigError,
    DeadlineExceeded,
    TaskError,
    TransportError,
)
from fedge.params import Vector
from fedge.privacy.accounting import Spend, epsilon
from fedge.settings import Hyperparameters, PrivacyConfig, TaskConfig
from fedge.tasks.digits import Digits
from fedge.training.local import LocalTrainer

pytestmark = pytest.mark.slow

HYPER = Hyperparameters()
NICE = 1
TRAINER = LocalTrainer(Digits())


def make_settings(folder: Path, **training: float) -> ProcessSettings:
    config = StoreConfig(holdout_fraction=0.2)
    data = Digits().client_data(0, 8)
    with SampleDatabase(folder / "samples.db", config) as samples:
        for index in range(100):
            samples.add(f"sample-{index}", data.inputs[index], data.targets[index])
    # Not the lowest priority: on a busy machine that would make these tests wait for ever.
    process = TrainingProcessConfig(**{"nice": NICE, **training})  # type: ignore[arg-type]
    return ProcessSettings(folder / "samples.db", store=config, training=process)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessWorker]:
    worker = ProcessWorker(make_settings(tmp_path_factory.mktemp("device")))
    worker.start()
    yield worker
    worker.stop()


def ask(**others: object) -> Ask:
    values = {
        "layout_digest": TRAINER.layout.digest,
        "hyper": HYPER,
        "privacy": PrivacyConfig(),
        "num_rounds_left": 5,
        **others,
    }
    return Ask(**values)  # type: ignore[arg-type]


def weights() -> Vector:
    return TRAINER.initial_weights(0)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def cpu_ticks(pid: int) -> int:
    """Return user time in hundredths of a second."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11])


def test_the_child_describes_its_task(worker: ProcessWorker) -> None:
    description = worker.describe()
    assert (description.name, description.input_shape) == ("digits", (64,))


def test_a_model_with_batch_norm_is_described_and_refused_when_it_is_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from torch import nn\n"
        "from fedge.tasks.digits import Digits\n"
        "class Task(Digits):\n"
        "    def build_model(self):\n"
        "        return nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10))\n"
    )
    (tmp_path / "with_batch_norm.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
    settings = replace(make_settings(tmp_path), task=TaskConfig("with_batch_norm:Task"))
    worker = ProcessWorker(settings)
    try:
        assert worker.describe().template
        with pytest.raises(TaskError, match=r"'0' is BatchNorm.*use GroupNorm"):
            worker.propose(ask())
    finally:
        worker.stop()


def test_a_proposal_counts_what_was_spent_and_what_is_planned(worker: ProcessWorker) -> None:
    spent = (Spend(2.0, 0.5, 4),)
    proposal = worker.propose(ask(spent=spent))
    assert proposal.plan is not None
    assert proposal.num_examples == 64.0
    assert proposal.epsilon_before == pytest.approx(epsilon(spent, 1e-5))
    assert proposal.epsilon_after == pytest.approx(epsilon([*spent, proposal.plan.spend], 1e-5))


def test_training_with_a_plan_takes_its_steps_and_never_repeats_its_noise(
    worker: ProcessWorker,
) -> None:
    plan = worker.propose(ask()).plan
    assert plan is not None
    first = worker.train(TRAINER.layout.digest, weights(), HYPER, plan)
    second = worker.train(TRAINER.layout.digest, weights(), HYPER, plan)
    assert first.num_steps == plan.num_steps
    assert first.delta.shape == (TRAINER.layout.size,)
    assert np.abs(first.delta - second.delta).max() > 0


def test_a_correction_travels_to_the_child_with_the_weights(worker: ProcessWorker) -> None:
    hyper = Hyperparameters(
        learning_rate=0.5, local_epochs=1, batch_size=1000, client_term="scaffold"
    )
    correction = np.linspace(-1, 1, TRAINER.layout.size).astype(np.float32)
    plain = worker.train(TRAINER.layout.digest, weights(), hyper, None)
    tilted = worker.train(TRAINER.layout.digest, weights(), hyper, None, correction)
    assert plain.num_steps == tilted.num_steps == 1
    np.testing.assert_allclose(tilted.delta - plain.delta, -0.5 * correction, atol=1e-5)


def test_personal_layers_travel_to_the_child(worker: ProcessWorker) -> None:
    """FedProx pulls from what it starts from, and leaves personal layers alone."""
    prox = Hyperparameters(
        learning_rate=0.5, local_epochs=2, batch_size=1000, client_term="fedprox", proximal_mu=1.0
    )
    name = TRAINER.layout.names[-1]
    deltas = [
        TRAINER.layout.views(worker.train(TRAINER.layout.digest, weights(), hyper, None).delta)
        for hyper in (prox, replace(prox, personal_layers=(name,)))
    ]
    np.testing.assert_allclose(deltas[0]["0.weight"], deltas[1]["0.weight"], atol=1e-5)
    assert np.abs(deltas[0][name] - deltas[1][name]).max() > 1e-3


def test_training_in_the_child_lowers_the_loss_that_it_evaluates(worker: ProcessWorker) -> None:
    trained = worker.train(TRAINER.layout.digest, weights(), HYPER, None)
    before = worker.evaluate(TRAINER.layout.digest, weights())
    after = worker.evaluate(TRAINER.layout.digest, weights() + trained.delta)
    assert before is not None
    assert after is not None
    assert before.num_examples == after.num_examples > 0
    assert after.metrics["loss"] < before.metrics["loss"]


def test_errors_of_the_child_arrive_as_what_they_are(worker: ProcessWorker) -> None:
    with pytest.raises(TaskError, match="same task and options"):
        worker.propose(ask(layout_digest="0" * 64))
    with pytest.raises(BudgetExhausted) as raised:
        worker.propose(ask(spent=(Spend(0.5, 1.0, 100),), noise_multiplier=None))
    assert raised.value.spent > raised.value.budget == 8.0


def test_the_child_has_the_configured_priority_within_the_daemons_session(
    worker: ProcessWorker,
) -> None:
    worker.describe()
    assert worker.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, worker.pid) == NICE
    assert os.getsid(worker.pid) == os.getsid(0)  # a nice process of another would be an equal
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)  # Ctrl-C is not for it


def test_a_killed_child_is_an_error_and_the_next_command_has_a_new_one(
    worker: ProcessWorker,
) -> None:
    worker.describe()
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    failure: list[Exception] = []

    def call() -> None:
        try:
            worker.train(TRAINER.layout.digest, weights(), HYPER, None)
        except TransportError as error:
            failure.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    os.kill(first, signal.SIGKILL)
    caller.join(20)
    assert "broke off during 'train'" in str(failure[0])
    assert worker.describe().name == "digits"
    assert worker.pid != first


def test_stopping_ends_a_training_under_way_at_once(tmp_path: Path) -> None:
    worker = ProcessWorker(make_settings(tmp_path))
    worker.start()
    worker.describe()
    pid = worker.pid
    assert pid is not None
    failure: list[Exception] = []
    hyper = Hyperparameters(local_epochs=10**6)

    def call() -> None:
        try:
            worker.train(TRAINER.layout.digest, weights(), hyper, None)
        except TransportError as error:
            failure.append(error)

    caller = threading.Thread(target=call)
    worker.propose(ask())
    idle = cpu_ticks(pid)
    caller.start()
    wait_until(lambda: cpu_ticks(pid) > idle + 10, "training began")
    began = time.monotonic()
    worker.stop()
    caller.join(5)
    assert time.monotonic() - began < 3
    assert failure
    assert is_gone(pid)
    with pytest.raises(TransportError, match="stopping"):
        worker.describe()


def test_a_deadline_keeps_the_steps_taken_so_far(tmp_path: Path) -> None:
    worker = ProcessWorker(make_settings(tmp_path, deadline_s=8.0))
    try:
        hyper = Hyperparameters(local_epochs=10**6)
        trained = worker.train(TRAINER.layout.digest, weights(), hyper, None)
        assert 0 < trained.num_steps < 10**6
    finally:
        worker.stop()


def test_a_child_that_hangs_is_ended_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = ProcessWorker(make_settings(tmp_path, deadline_s=0.1))
    try:
        worker.describe()
        hung = worker.pid
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        monkeypatch.setattr(process_worker, "GRACE_S", 0.1)
        with pytest.raises(DeadlineExceeded, match=r"training\.deadline_s"):
            worker.train(TRAINER.layout.digest, weights(), HYPER, None)
        assert is_gone(hung)
        monkeypatch.setattr(process_worker, "GRACE_S", 60.0)
        assert worker.describe().name == "digits"
    finally:
        worker.stop()


def test_a_task_that_cannot_be_loaded_is_said_by_name(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    broken = ProcessSettings(settings.samples_path, task=TaskConfig("no_such_module:Task"))
    worker = ProcessWorker(broken)
    try:
        with pytest.raises(ConfigError, match="no_such_module"):
            worker.describe()
    finally:
        worker.stop()


def test_the_child_dies_with_its_killed_parent(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from edge_client.process_worker import ProcessWorker\n"
        "from edge_client.worker_frames import ProcessSettings\n"
        "worker = ProcessWorker(ProcessSettings(Path(sys.argv[1])))\n"
        "worker.start(); worker.describe()\n"
        "assert 'torch' not in sys.modules\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(settings.samples_path)], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    wait_until(lambda: is_gone(child), "the child is gone")
