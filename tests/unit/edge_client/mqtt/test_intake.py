import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.inference import Prediction, Version
from edge_client.mqtt.answering import Answering
from edge_client.mqtt.counters import Counters
from edge_client.mqtt.intake import Intake
from edge_client.mqtt.outbox import Outbox
from edge_client.mqtt.predictor import Predictor
from edge_client.mqtt.readings import ReadingsIntake
from edge_client.mqtt.settings import OutboxConfig, SchemaConfig
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig
from fedge.errors import InvalidInput, ModelError, StoreError
from fedge.mqtt.inbox import Inbox
from fedge.mqtt.messages import Incoming
from fedge.mqtt.topics import DeviceTopics
from tests.summing_model import SummingModel
from tests.window_streams import no_windows

DEADLINE_S = 30.0
TOPICS = DeviceTopics("ward", "box")


class Bench:
    def __init__(self, folder: Path) -> None:
        self.samples = SampleDatabase(folder / "samples.db", StoreConfig(holdout_fraction=0.0))
        self.outbox = Outbox(folder / "outbox.db", OutboxConfig(), clock=lambda: 0.0)
        self.model = SummingModel()
        self.counters = Counters()
        self.acknowledged: list[int] = []
        self.num_reconnects = 0
        schema = SchemaConfig(shape=(2,))
        predictor = Predictor(self.model, self.counters, clock=lambda: 1.0)
        answering = Answering(predictor, self.outbox, lambda: None)
        stream = no_windows(self.samples)
        self.intake = Intake(
            schema,
            TOPICS,
            self.samples,
            answering,
            ReadingsIntake(schema, stream, answering, self.counters),
            self.counters,
            reconnect=self._reconnect,
            inbox=Inbox(max_messages=8),
        )

    def _reconnect(self) -> None:
        self.num_reconnects += 1

    def message(self, number: int, payload: Any, topic: str = TOPICS.samples) -> Incoming:
        content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        return Incoming(topic, content, acknowledge=lambda: self.acknowledged.append(number))

    def sample(self, number: int) -> Incoming:
        return self.message(number, {"source": "s", "sequence": number, "input": [number, 1]})

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(row.body) for row in self.outbox.head(0, 100)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.samples.close()
    made.outbox.close()


def test_a_sample_is_kept_answered_and_then_acknowledged(bench: Bench) -> None:
    bench.intake.work([bench.sample(3)])
    assert bench.bodies() == [
        {
            "source": "s",
            "source_sequence": 3,
            "sample_id": "s/3",
            "output": [4.0],
            "shape": [1],
            "model": {"round": 4, "digest": "abc"},
            "latency_us": 7.5,
            "predicted_at": 1.0,
        }
    ]
    assert bench.samples.counts() == (0, 1)
    assert bench.acknowledged == [3]


def test_outputs_that_are_no_numbers_are_null(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = np.array([np.nan, 0.1, np.inf], np.float32)
    monkeypatch.setattr(bench.model, "predict", lambda _: Prediction(outputs, Version(4, "a"), 1.0))
    bench.intake.work([bench.sample(3)])
    [row] = bench.outbox.head(0, 10)
    assert b"NaN" not in row.body
    assert b"Infinity" not in row.body
    assert json.loads(row.body)["output"] == [None, 0.1, None]


def test_a_duplicate_is_acknowledged_and_answered_once(bench: Bench) -> None:
    bench.intake.work([bench.sample(1), bench.sample(2), bench.sample(1)])
    bench.intake.work([bench.sample(2)])
    assert len(bench.bodies()) == 2
    assert bench.samples.counts() == (0, 2)
    assert bench.acknowledged == [1, 2, 1, 2]
    assert bench.counters.snapshot()["samples_accepted_total"] == 2


def test_a_kill_between_the_two_commits_costs_no_prediction_and_makes_none_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bench.outbox, "put_many", _fail)
        with pytest.raises(StoreError):
            bench.intake.work([bench.sample(1)])
    assert bench.samples.counts() == (0, 1)
    assert bench.acknowledged == []
    bench.intake.work([bench.sample(1)])
    assert len(bench.bodies()) == 1
    assert bench.samples.counts() == (0, 1)
    assert bench.acknowledged == [1]


def test_nothing_is_acknowledged_that_was_not_committed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.samples, "add_many", _fail)
    with pytest.raises(StoreError):
        bench.intake.work([bench.sample(1), bench.message(2, b"nonsense")])
    assert bench.acknowledged == []
    assert bench.bodies() == []


def test_bad_messages_are_counted_acknowledged_and_in_nobodys_way(bench: Bench) -> None:
    bench.intake.work(
        [
            bench.message(1, b"\xff"),
            bench.sample(2),
            bench.message(3, {"source": "s", "sequence": 1, "input": [1, 2, 3]}),
            bench.message(4, {"sample_id": "s/2", "label": "x"}, TOPICS.labels),
            bench.sample(5),
        ]
    )
    assert bench.acknowledged == [1, 2, 3, 4, 5]
    assert bench.samples.counts() == (0, 2)
    found = bench.counters.snapshot()
    assert found["rejected_encoding_total"] == found["rejected_shape_total"] == 1
    assert found["rejected_type_total"] == 1


def test_a_label_finds_its_sample_before_and_after_it(bench: Bench) -> None:
    bench.intake.work(
        [
            bench.message(0, {"sample_id": "s/1", "label": 6}, TOPICS.labels),
            bench.sample(1),
            bench.sample(2),
            bench.message(3, {"source": "s", "sequence": 2, "label": 7}, TOPICS.labels),
        ]
    )
    assert bench.samples.labelled("train").targets.tolist() == [6, 7]


def test_without_a_model_samples_are_kept_and_it_is_said(bench: Bench) -> None:
    bench.model.error = ModelError("no model yet")
    bench.intake.work([bench.sample(1)])
    assert bench.samples.counts() == (0, 1)
    assert bench.bodies() == []
    assert "no model yet" in bench.intake.problem
    bench.model.error = None
    bench.intake.work([bench.sample(2)])
    assert bench.intake.problem == ""


def test_a_schema_that_the_model_does_not_take_is_said(bench: Bench) -> None:
    bench.model.error = InvalidInput("expected shape [64]")
    bench.intake.work([bench.sample(1)])
    assert bench.acknowledged == [1]
    assert bench.samples.counts() == (0, 0)
    assert "mqtt.schema" in bench.intake.problem


def test_a_disk_that_fails_for_a_while_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = bench.samples.add_many, threading.Event()
    broken.set()
    monkeypatch.setattr(
        bench.samples, "add_many", lambda ready: _fail() if broken.is_set() else whole(ready)
    )
    bench.intake.start()
    try:
        bench.intake.offer(bench.sample(1))
        _wait_until(lambda: bench.intake.problem == "disk is full")
        broken.clear()
        _wait_until(lambda: bench.acknowledged == [1])
        _wait_until(lambda: bench.intake.problem == "")
    finally:
        bench.intake.stop()


def test_a_message_that_breaks_us_is_dropped_and_the_others_are_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.samples.prepare

    def prepare(sample_id: str, *args: Any, **options: Any) -> Any:
        if sample_id == "s/2":
            raise ZeroDivisionError
        return whole(sample_id, *args, **options)

    monkeypatch.setattr(bench.samples, "prepare", prepare)
    for number in (1, 2, 3):
        bench.intake.offer(bench.sample(number))
    bench.intake.start()
    try:
        _wait_until(lambda: sorted(bench.acknowledged) == [1, 2, 3])
    finally:
        bench.intake.stop()
    assert bench.samples.counts() == (0, 2)
    assert bench.counters.snapshot()["rejected_bug_total"] == 1


def test_what_finds_no_room_is_asked_for_again_once_there_is_some(bench: Bench) -> None:
    for number in range(10):
        bench.intake.offer(bench.sample(number))
    assert bench.counters.snapshot()["messages_postponed_total"] == 2
    bench.intake.start()
    try:
        _wait_until(lambda: bench.num_reconnects == 1)
    finally:
        bench.intake.stop()
    assert bench.acknowledged == list(range(8))


def test_what_waits_is_forgotten_with_its_connection(bench: Bench) -> None:
    bench.intake.offer(bench.sample(1))
    bench.intake.clear()
    bench.intake.offer(bench.sample(99))
    bench.intake.start()
    try:
        _wait_until(lambda: bench.acknowledged == [99])
    finally:
        bench.intake.stop()


def _fail(*_: object) -> Any:
    raise StoreError("disk is full")


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
