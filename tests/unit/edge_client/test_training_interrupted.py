"""A round whose training process is killed, paused, or short of memory."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client import training_process
from edge_client.conditions import Gate
from edge_client.framing import receive_frame, send_frame
from edge_client.ledger_db import SqliteLedger
from edge_client.participant import Participant, TrainedRound
from edge_client.process_worker import FRUITLESS_STARTS, ProcessWorker
from edge_client.replies import MemoryReplyStore
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig, TrainingProcessConfig
from edge_client.training_process import TrainingServer
from edge_client.worker import Ask
from edge_client.worker_frames import ProcessSettings
from fedge.errors import TrainingPaused, TransportError
from fedge.messages import EncodedUpdate, Refusal, WeightsRequest
from fedge.settings import Hyperparameters, PrivacyConfig, TaskConfig
from fedge.training.local import LocalTrainer
from tests.tiny_task import TinyTask

TRAINER = LocalTrainer(TinyTask())
LAYOUT = TRAINER.layout
PRIVACY = PrivacyConfig(epsilon=8.0, declared_examples=64)
PATIENCE_S = 120


def make_settings(folder: Path, training: dict[str, Any], **task: Any) -> ProcessSettings:
    data = TinyTask(num_client=64).client_data(0, 1)
    store = StoreConfig(holdout_fraction=0.0)
    with SampleDatabase(folder / "samples.db", store) as samples:
        for index in range(len(data)):
            samples.add(f"sample-{index}", data.inputs[index], data.targets[index])
    return ProcessSettings(
        folder / "samples.db",
        TaskConfig(
            "tests.unit.edge_client.traced_task:TracedTask",
            {"trace": str(folder / "trace"), **task},
        ),
        store,
        # Not the lowest priority: on a busy machine that would make these tests wait for ever.
        TrainingProcessConfig(nice=1, **training),
        folder / "round.steps",
    )


def ask_for(epochs: int, round: int = 1) -> WeightsRequest:
    # Batches of 32 expected out of 64: an empty one, which asks for no loss, does not happen.
    hyper = Hyperparameters(local_epochs=epochs, batch_size=32, learning_rate=0.01)
    return WeightsRequest("run", round, 3, LAYOUT, TRAINER.initial_weights(0), hyper)


def begun_steps(folder: Path) -> int:
    trace = folder / "trace"
    return trace.stat().st_size if trace.exists() else 0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.002)


def wait_for_steps(folder: Path, number: int) -> None:
    wait_until(lambda: begun_steps(folder) >= number, f"{number} steps were begun")


def wait_for_another(worker: ProcessWorker, pid: int) -> None:
    wait_until(lambda: worker.pid != pid, "the child was replaced")


class Round:
    """One participant and a round that it answers in a thread."""

    def __init__(self, folder: Path, settings: ProcessSettings, privacy: PrivacyConfig) -> None:
        self.worker = ProcessWorker(settings)
        self.ledger = SqliteLedger(folder / "ledger.db")
        self.notes: list[TrainedRound] = []
        self.answers: list[EncodedUpdate | Refusal | Exception] = []
        self.participant = Participant(
            self.worker, self.ledger, MemoryReplyStore(), privacy, journal=self.notes.append
        )
        self._thread = threading.Thread()

    def begin(self, request: WeightsRequest) -> None:
        def answer() -> None:
            try:
                self.answers.append(self.participant.train(request))
            except TransportError as error:
                self.answers.append(error)

        self._thread = threading.Thread(target=answer)
        self._thread.start()

    def end(self) -> EncodedUpdate | Refusal | Exception:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.answers[-1]


@contextmanager
def a_round(
    folder: Path, privacy: PrivacyConfig = PRIVACY, *, training: Any = None, **task: Any
) -> Iterator[Round]:
    made = Round(folder, make_settings(folder, training or {}, **task), privacy)
    made.worker.start()
    try:
        yield made
    finally:
        made.worker.stop()
        made.ledger.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("privacy", "num_kills"),
    [(PRIVACY, 12), (PrivacyConfig(enabled=False), 4)],
    ids=["dp", "plain"],
)
def test_a_child_killed_at_random_instants_loses_one_step_each_time_at_most(
    tmp_path: Path, privacy: PrivacyConfig, num_kills: int
) -> None:
    """Each kill comes after some new steps, at a random moment of a step."""
    rng, step_s = random.Random(privacy.enabled), 0.02
    with a_round(tmp_path, privacy, loss_s=step_s) as round:
        round.begin(ask_for(epochs=40))  # 80 steps
        steps = 0
        for _ in range(num_kills):
            steps += rng.randrange(2, 6)
            wait_for_steps(tmp_path, steps)
            time.sleep(rng.random() * step_s)
            pid = round.worker.pid
            assert pid is not None
            steps = begun_steps(tmp_path)
            os.kill(pid, signal.SIGKILL)
            wait_for_another(round.worker, pid)
        answer = round.end()
        account = round.ledger.account()
        entries = round.ledger.spends("train")
    assert isinstance(answer, EncodedUpdate)
    assert answer.num_steps == round.notes[0].num_steps == 80
    assert 80 <= begun_steps(tmp_path) <= 80 + num_kills
    assert np.abs(np.frombuffer(answer.payload, np.float32)).max() > 0
    if privacy.enabled:
        assert account is not None
        assert len(entries) == 1
        assert entries[0].num_steps == 80
        assert answer.epsilon == pytest.approx(account.epsilon)
    else:
        assert not entries


@pytest.mark.slow
def test_a_restarted_device_goes_on_with_a_round_that_it_is_asked_for_again(
    tmp_path: Path,
) -> None:
    """What was reserved by the device that died stays spent: over-counted, never under-counted."""
    request = ask_for(epochs=20)  # 40 steps
    with a_round(tmp_path, loss_s=0.02) as round:
        round.begin(request)
        wait_for_steps(tmp_path, 20)
        round.worker.stop()  # in mid-step
        assert isinstance(round.end(), TransportError)
    with a_round(tmp_path, loss_s=0.02) as round:
        answer = round.participant.train(request)
        assert isinstance(answer, EncodedUpdate)
        assert answer.num_steps == 40
        assert 40 <= begun_steps(tmp_path) <= 41
        assert len(round.ledger.spends("train")) == 2
        # Another round of the same model begins from its own weights.
        assert isinstance(round.participant.train(ask_for(20, round=2)), EncodedUpdate)
        assert 80 <= begun_steps(tmp_path) <= 81


@pytest.mark.slow
def test_a_child_that_dies_without_a_step_is_given_up(tmp_path: Path) -> None:
    with a_round(tmp_path, PrivacyConfig(enabled=False), loss_s=30.0) as round:
        round.begin(ask_for(epochs=1))
        for number in range(1, FRUITLESS_STARTS + 1):
            wait_for_steps(tmp_path, number)
            pid = round.worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        error = round.end()
    assert "broke off during 'train'" in str(error)
    assert begun_steps(tmp_path) == FRUITLESS_STARTS


@pytest.mark.slow
def test_a_training_too_large_is_refused_by_name_and_the_child_replaced(tmp_path: Path) -> None:
    training = {"max_memory_mib": 700}
    with a_round(tmp_path, training=training, greedy_mib=4096) as round:
        round.worker.describe()
        first = round.worker.pid
        answer = round.participant.train(ask_for(epochs=1))
        assert isinstance(answer, Refusal)
        assert answer.reason == "memory"
        assert "more than the 700 MiB that training.max_memory_mib allows" in answer.detail
        assert round.participant.problem == answer.detail
        assert round.worker.describe().name == "tiny"
        assert round.worker.pid != first
        spent, begun = round.ledger.spends("train"), begun_steps(tmp_path)
        assert round.participant.train(ask_for(epochs=1, round=2)) == answer
        assert (round.ledger.spends("train"), begun_steps(tmp_path)) == (spent, begun)


@pytest.mark.slow
def test_outside_of_its_hours_a_device_refuses_before_it_spends(tmp_path: Path) -> None:
    now = datetime.now()
    hours = "-".join(f"{now + timedelta(hours=ahead):%H:%M}" for ahead in (2, 3))
    with a_round(tmp_path, training={"hours": hours}) as round:
        answer = round.participant.train(ask_for(epochs=1))
        assert isinstance(answer, Refusal)
        assert answer.reason == "paused"
        assert "outside of training.hours" in answer.detail
        assert round.ledger.account() is None


class Switch:
    """A condition that a test turns on and off."""

    def __init__(self) -> None:
        self.text = ""

    def reason(self) -> str:
        return self.text


class ChildInThread:
    """A training process's commands, answered in a thread of this process."""

    def __init__(self, folder: Path, switch: Switch, **task: Any) -> None:
        self.connection, self._theirs = socket.socketpair()
        settings = make_settings(folder, {}, **task)
        self._server = TrainingServer(self._theirs, settings, Gate([switch]))
        self._thread = threading.Thread(target=self._server.serve)
        self._thread.start()
        self.connection.settimeout(PATIENCE_S)

    def train(self, request: WeightsRequest, deadline_s: float) -> None:
        header = {
            "command": "train",
            "layout_digest": LAYOUT.digest,
            "hyper": {"local_epochs": request.hyper.local_epochs, "batch_size": 32},
            "plan": None,
            "round_id": "a round",
            "num_vectors": 1,
            "deadline_s": deadline_s,
        }
        send_frame(self.connection, header, request.weights.data.cast("B"))

    def receive(self) -> dict[str, Any]:
        return receive_frame(self.connection)[0]

    def close(self) -> None:
        self.connection.close()
        self._thread.join(PATIENCE_S)
        self._theirs.close()


@pytest.fixture
def quick_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_client.conditions.CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(training_process, "CHECK_INTERVAL_S", 0.01)


@pytest.mark.usefixtures("quick_gate")
def test_a_pause_is_said_and_loses_no_step(tmp_path: Path) -> None:
    switch = Switch()
    child = ChildInThread(tmp_path, switch, loss_s=0.002)
    try:
        child.train(ask_for(epochs=50), PATIENCE_S)  # 100 steps
        for pause in range(3):
            wait_for_steps(tmp_path, begun_steps(tmp_path) + 10)
            switch.text = f"pause {pause}"
            assert child.receive() == {"note": {"paused": f"pause {pause}"}}
            paused_at = begun_steps(tmp_path)
            child.connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                child.receive()
            assert begun_steps(tmp_path) == paused_at < 100
            child.connection.settimeout(PATIENCE_S)
            switch.text = ""
            assert child.receive() == {"note": {"paused": ""}}
        assert child.receive()["num_steps"] == 100
        assert begun_steps(tmp_path) == 100
    finally:
        child.close()


@pytest.mark.usefixtures("quick_gate")
def test_a_pause_ends_with_the_rounds_deadline_and_keeps_its_steps(tmp_path: Path) -> None:
    switch = Switch()
    child = ChildInThread(tmp_path, switch, loss_s=0.002)
    try:
        child.train(ask_for(epochs=10**6), 1.0)
        wait_for_steps(tmp_path, 3)
        switch.text = "hot"
        assert child.receive() == {"note": {"paused": "hot"}}
        assert child.receive() == {"note": {"paused": ""}}
        assert child.receive()["num_steps"] == begun_steps(tmp_path)
    finally:
        child.close()


@pytest.mark.slow
def test_a_closed_gate_arrives_as_what_it_is(tmp_path: Path) -> None:
    now = datetime.now()
    hours = "-".join(f"{now + timedelta(hours=ahead):%H:%M}" for ahead in (2, 3))
    worker = ProcessWorker(make_settings(tmp_path, {"hours": hours}))
    try:
        with pytest.raises(TrainingPaused):
            worker.propose(Ask(LAYOUT.digest, Hyperparameters(), PRIVACY, 1))
    finally:
        worker.stop()
