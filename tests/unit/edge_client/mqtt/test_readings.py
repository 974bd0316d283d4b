import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_client.inference import Array
from edge_client.mqtt.answering import Answering
from edge_client.mqtt.counters import Counters
from edge_client.mqtt.intake import Intake
from edge_client.mqtt.outbox import Outbox
from edge_client.mqtt.predictor import Predictor
from edge_client.mqtt.readings import ReadingsIntake, read_readings
from edge_client.mqtt.settings import OutboxConfig, SchemaConfig
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig
from edge_client.window_stream import WindowStream
from fedge.errors import (
    ConfigError,
    InvalidInput,
    InvalidSample,
    ModelError,
    PayloadRejected,
    StoreError,
)
from fedge.mqtt.messages import Incoming
from fedge.mqtt.topics import DeviceTopics
from fedge.windows import Readings, WindowSpec, cut_windows
from tests.summing_model import SummingModel
from tests.window_streams import no_windows, stream_of

SPEC = WindowSpec(size=4, hop=2, mean=(1.0, 2.0), scale=(2.0, 4.0))
SCHEMA = SchemaConfig(shape=(4, 2))
TOPICS = DeviceTopics("ward", "box")


class Device:
    """One device's intake, which can be killed and started again in the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.counters = Counters()
        self.model = SummingModel()
        self.acknowledged: list[int] = []
        self.start()

    def start(
        self,
        stream: WindowStream | None = None,
        schema: SchemaConfig = SCHEMA,
        spec: WindowSpec = SPEC,
    ) -> None:
        self.samples = SampleDatabase(self._folder / "s.db", StoreConfig(holdout_fraction=0.0))
        self.outbox = Outbox(self._folder / "o.db", OutboxConfig(), clock=lambda: 0.0)
        stream = self.stream = stream or stream_of(spec, self.samples)
        predictor = Predictor(self.model, self.counters, clock=lambda: 1.0)
        answering = Answering(predictor, self.outbox, lambda: None)
        readings = ReadingsIntake(schema, stream, answering, self.counters)
        self.intake = Intake(
            *(schema, TOPICS, self.samples, answering, readings, self.counters),
            reconnect=lambda: None,
        )

    def kill(self) -> None:
        self.samples.close()
        self.outbox.close()

    def message(self, first: int, number: int) -> Incoming:
        body = {
            "source": "press",
            "sequence": first,
            "times_s": list(range(first, first + number)),
            "values": _values(first, number).tolist(),
        }
        return self.message_of(json.dumps(body).encode(), first)

    def message_of(self, payload: bytes, name: int = 0, **more: Any) -> Incoming:
        note = lambda: self.acknowledged.append(name)  # noqa: E731
        return Incoming(TOPICS.readings, payload, acknowledge=note, **more)

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(row.body) for row in self.outbox.head(0, 1000)]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    made.kill()


def _values(first: int, number: int) -> Array:
    sequences = first + np.arange(number)
    return np.stack([np.sin(sequences), np.cos(3 * sequences)], axis=1).astype(np.float32)


def _expected(number: int) -> Array:
    sequences = np.arange(number)
    return cut_windows(Readings(_values(0, number), sequences, sequences / 1.0), SPEC).inputs


def test_windows_are_answered_stored_and_then_acknowledged(device: Device) -> None:
    device.intake.work([device.message(0, 3), device.message(3, 3)])
    first, second = device.bodies()
    expected = _expected(6)
    assert first["sample_id"] == "press/0/0"
    assert (second["source"], second["source_sequence"]) == ("press", 2)
    assert second["sample_id"] == "press/0/2"
    outputs = np.array([first["output"], second["output"]], np.float32)
    np.testing.assert_allclose(outputs, expected.sum((1, 2))[:, None], rtol=1e-6)
    assert device.acknowledged == [0, 3]
    assert device.outbox.snapshot()["sequence_gap"] == 0
    label = {"sample_id": "press/0/2", "label": 1}
    device.intake.work([Incoming(TOPICS.labels, json.dumps(label).encode())])
    assert device.samples.labelled("train").inputs.tobytes() == expected[1:].tobytes()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["", "outbox", "samples", "again"]))))
def test_kills_and_repeats_anywhere_lose_and_double_no_window(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, str]]
) -> None:
    device, first = Device(tmp_path_factory.mktemp("device")), 0
    for number, fault in parts:
        message = device.message(first, number)
        if fault in ("outbox", "samples"):
            with pytest.MonkeyPatch.context() as patch:
                found = device.outbox if fault == "outbox" else device.samples
                patch.setattr(found, "put_many" if fault == "outbox" else "add_many", _fail)
                with pytest.raises(StoreError):
                    device.intake.work([message])
            device.kill()
            device.start()
        device.intake.work([message, message] if fault == "again" else [message])
        first += number
    expected = _expected(first)
    bodies = device.bodies()
    assert [body["source_sequence"] for body in bodies] == [2 * n for n in range(len(expected))]
    assert device.samples.counts() == (0, len(expected))
    device.kill()


def test_windows_of_an_updated_task_are_answered_although_their_numbers_begin_lower(
    device: Device,
) -> None:
    device.intake.work([device.message(0, 40)])
    device.kill()
    device.start(spec=replace(SPEC, hop=4))
    device.intake.work([device.message(40, 8)])
    assert [body["source_sequence"] for body in device.bodies()][-3:] == [36, 40, 44]


def test_readings_that_came_before_are_counted_apart(device: Device) -> None:
    device.intake.work([device.message(0, 4), device.message(2, 4), device.message(0, 4)])
    counted = device.counters.snapshot()
    assert counted["readings_accepted_total"] == 6
    assert counted["readings_repeated_total"] == 6


def test_a_backlog_is_taken_in_a_few_messages_at_a_time(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    window_bytes = 4 * SPEC.size * SPEC.num_channels
    monkeypatch.setattr("edge_client.mqtt.readings.MAX_BYTES_TOGETHER", 5 * window_bytes)
    sizes: list[int] = []
    add_many = device.samples.add_many

    def note(samples: Any, states: Any) -> list[bool]:
        sizes.append(len(samples))
        return add_many(samples, states)

    monkeypatch.setattr(device.samples, "add_many", note)
    device.intake.work([device.message(4 * n, 4) for n in range(5)] + [device.message(20, 20)])
    assert sizes == [3, 4, 2, 10]
    assert len(device.bodies()) == len(_expected(40))
    assert len(device.acknowledged) == 6


def test_packed_readings_give_the_same_windows(device: Device) -> None:
    properties = {"source": "press", "sequence": "0", "time_s": "5.5", "interval_s": "0.1"}
    payload = _values(0, 6).astype("<f4").tobytes()
    kind = "application/octet-stream"
    device.intake.work([device.message_of(payload, properties=properties, content_type=kind)])
    outputs = np.array([body["output"][0] for body in device.bodies()], np.float32)
    np.testing.assert_allclose(outputs, _expected(6).sum((1, 2)), rtol=1e-6)


def test_without_a_model_windows_are_kept_and_it_is_said(device: Device) -> None:
    device.model.error = ModelError("no model yet")
    device.intake.work([device.message(0, 4)])
    assert device.samples.counts() == (0, 1)
    assert device.acknowledged == [0]
    assert "no model yet" in device.intake.problem


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"sequence": 0, "times_s": [0], "values": [[1, 2]]}, "source"),
        ({"source": "s", "times_s": [0], "values": [[1, 2]]}, "sequence"),
        ({"source": "s", "sequence": 0, "values": [[1, 2]]}, "missing"),
        ({"source": "s", "sequence": 0, "times_s": [], "values": []}, "shape"),
        ({"source": "s", "sequence": 0, "times_s": [0, 1], "values": [[1, 2]]}, "shape"),
        ({"source": "s", "sequence": 0, "times_s": [0], "values": [[1, 2, 3]]}, "shape"),
        ({"source": "s", "sequence": 0, "times_s": [0], "values": [[1, "2"]]}, "type"),
        ({"source": "s", "sequence": 0, "times_s": ["0"], "values": [[1, 2]]}, "type"),
        ({"source": "s", "sequence": 0, "times_s": [1e999], "values": [[1, 2]]}, "number"),
        ({"source": "s", "sequence": 2**53 - 1, "times_s": [0], "values": [[1, 2]]}, "sequence"),
    ],
)
def test_bad_readings_are_dropped_by_reason(
    device: Device, body: dict[str, Any], reason: str
) -> None:
    text = json.dumps(body).encode()
    device.intake.work([device.message_of(text), device.message(0, 4)])
    assert device.counters.snapshot()[f"rejected_{reason}_total"] == 1
    assert len(device.acknowledged) == 2
    assert len(device.bodies()) == 1


@pytest.mark.parametrize(
    ("size", "properties"),
    [
        (7, {"time_s": "0", "interval_s": "1"}),
        (8, {"time_s": "0"}),
        (8, {"time_s": "nan", "interval_s": "1"}),
        (8, {"time_s": "0", "interval_s": "inf"}),
    ],
)
def test_bad_packed_readings_are_refused(size: int, properties: Mapping[str, str]) -> None:
    found = {"source": "s", "sequence": "1", **properties}
    message = Incoming("t", bytes(size), found, "application/octet-stream")
    with pytest.raises(PayloadRejected):
        read_readings(message, SCHEMA)


def test_a_task_without_windows_and_a_schema_of_another_shape_drop_readings(
    device: Device,
) -> None:
    device.kill()
    device.start(no_windows(device.samples))
    device.intake.work([device.message(0, 4)])
    device.kill()
    device.start(schema=SchemaConfig(shape=(8, 2)))
    device.intake.work([device.message(0, 4)])
    counted = device.counters.snapshot()
    assert counted["rejected_no_windows_total"] == 1
    assert counted["rejected_model_input_total"] == 1
    assert device.acknowledged == [0, 0]
    assert device.bodies() == []


def test_windows_that_do_not_fit_the_model_cost_no_label(device: Device) -> None:
    device.model.error = InvalidInput("expected shape [8]")
    label = {"sample_id": "camera/1", "label": 1}
    device.intake.work(
        [
            device.message(0, 4),
            device.message(4, 4),
            Incoming(TOPICS.labels, json.dumps(label).encode()),
        ]
    )
    assert device.acknowledged == [0, 4]
    assert device.counters.snapshot()["rejected_model_input_total"] == 2
    assert device.samples.figures().waiting_labels == 1
    assert "does not fit the model" in device.intake.problem


def test_a_window_larger_than_the_store_is_dropped_by_reason(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InvalidSample("raise store.max_bytes")

    monkeypatch.setattr(device.samples, "prepare", refuse)
    device.intake.work([device.message(0, 4)])
    assert device.acknowledged == [0]
    assert device.counters.snapshot()["rejected_invalid_total"] == 1


def test_readings_wait_while_it_is_not_known_how_they_are_cut(device: Device) -> None:
    def load() -> WindowSpec | None:
        raise ConfigError("the task cannot be loaded", key="task.name")

    device.kill()
    device.start(WindowStream(load, None, device.samples))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="the task cannot be loaded"):
        device.intake.work([device.message(0, 4)])
    assert device.acknowledged == []


def _fail(*_: object) -> None:
    raise StoreError("the disk is full")
