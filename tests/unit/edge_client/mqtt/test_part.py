"""MQTT on a device against a real broker; the model is a sum."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.mosquitto import Mosquitto, free_port
from edge_client.inference import Array, Prediction, Version
from edge_client.mqtt.part import MqttPart
from edge_client.mqtt.settings import MqttConfig, OutboxConfig, SchemaConfig
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig
from fedge.errors import StoreError
from fedge.mqtt.settings import BrokerConfig
from fedge.mqtt.topics import DeviceTopics
from tests.mqtt_source import Source
from tests.window_streams import no_windows

DEADLINE_S = 60.0
TOPICS = DeviceTopics("ward", "box")


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


class Sum:
    def predict(self, inputs: Array) -> Prediction:
        return Prediction(np.array([inputs.sum()], np.float32), Version(4, "abc"), 7.5)


class Bench:
    """One device's MQTT, which can be stopped and started again in the same folder."""

    def __init__(self, folder: Path, address: str, outbox: OutboxConfig) -> None:
        self.samples = SampleDatabase(folder / "samples.db", StoreConfig())
        self.looks = 0
        self._folder = folder
        self._config = MqttConfig(
            broker=BrokerConfig(address=address, reconnect_max_s=0.2),
            schema=SchemaConfig(shape=(2,), max_payload_bytes=4000),
            outbox=outbox,
        )
        self.part = self.open()

    def open(self) -> MqttPart:
        path = self._folder / "outbox.db"
        part = MqttPart(
            self._config, TOPICS, path, Sum(), self.samples, no_windows(self.samples), self._look
        )
        part.start()
        return part

    def reopen(self) -> None:
        self.part.stop()
        self.part = self.open()

    def close(self) -> None:
        self.part.stop()
        self.samples.close()

    def wait_for(self, name: str, value: float) -> None:
        wait_until(lambda: self.part.snapshot().get(name) == value, f"{name} = {value}")

    def _look(self) -> None:
        self.looks += 1


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def source(broker: Mosquitto) -> Iterator[Source]:
    with Source(broker.port, TOPICS.predictions, TOPICS.status) as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path, broker: Mosquitto, source: Source) -> Iterator[Bench]:
    made = Bench(tmp_path, broker.address, OutboxConfig())
    source.wait(lambda: b"online" in source.payloads("status"))
    yield made
    made.close()


@pytest.fixture
def careful(tmp_path: Path, broker: Mosquitto, source: Source) -> Iterator[Bench]:
    made = Bench(tmp_path, broker.address, OutboxConfig(acknowledge="consumer", resend_after_s=0.5))
    source.wait(lambda: b"online" in source.payloads("status"))
    yield made
    made.close()


def sample(number: int) -> dict[str, Any]:
    return {"source": "s", "sequence": number, "input": [number, 0.5]}


def predictions(source: Source) -> list[dict[str, Any]]:
    return [json.loads(payload) for payload in source.payloads("predictions")]


def test_a_sample_is_answered_and_its_prediction_deleted(bench: Bench, source: Source) -> None:
    source.send(TOPICS.samples, sample(3))
    packed = np.array([1, 2], "<f4").tobytes()
    numbered = {"source": "p", "sequence": "9"}
    source.send(TOPICS.samples, packed, numbered, content_type="application/octet-stream")
    source.wait(lambda: len(predictions(source)) == 2)
    first, second = predictions(source)
    assert (first["device"], first["source"], first["source_sequence"]) == ("box", "s", 3)
    assert (first["output"], first["model"]) == ([3.5], {"round": 4, "digest": "abc"})
    assert (second["source"], second["output"]) == ("p", [3.0])
    assert second["sequence"] == first["sequence"] + 1
    bench.wait_for("predictions_delivered_total", 2)
    assert bench.part.snapshot()["outbox_waiting"] == 0
    assert bench.part.problem == ""


def test_nothing_that_comes_ends_the_loop(bench: Bench, source: Source) -> None:
    hostile: list[Any] = [
        *(b"", b"\xff\xfe\xfd", b"{", b"[" * 3000, b"x" * 5000, b"x" * 300_000),
        *(None, [], "text", {}, {**sample(1), "sequence": -1}, {**sample(1), "sequence": 10**30}),
        *({**sample(1), "input": [1]}, {**sample(1), "input": [1, "2"]}),
        b'{"source":"s","sequence":1,"input":[NaN,1]}',
    ]
    for payload in hostile:
        source.send(TOPICS.samples, payload)
        source.send(TOPICS.labels, payload)
        source.send(TOPICS.model, payload)
    source.send(TOPICS.samples, sample(1), content_type="text/html")
    source.send(TOPICS.samples, sample(2), qos=0)
    source.send(TOPICS.samples, sample(3))
    source.wait(lambda: len(predictions(source)) == 2)
    assert [found["source_sequence"] for found in predictions(source)] == [2, 3]
    found = bench.part.snapshot()
    reasons = {name: value for name, value in found.items() if name.startswith("rejected_")}
    assert reasons["rejected_encoding_total"] == 2
    assert reasons["rejected_nesting_total"] == 2
    assert reasons["rejected_size_total"] == 2
    assert reasons["rejected_sequence_total"] == 2
    # The largest is never delivered; the broker is told how much we take.
    assert sum(reasons.values()) == 2 * (len(hostile) - 1) + 1
    assert bench.part.problem == ""


def test_a_label_reaches_its_sample(bench: Bench, source: Source) -> None:
    source.send(TOPICS.samples, sample(1))
    source.send(TOPICS.labels, {"sample_id": "s/1", "label": 5})
    wait_until(lambda: bench.samples.counts() == (1, 0), "labelled")


def test_duplicates_and_gaps_are_counted_across_a_restart(bench: Bench, source: Source) -> None:
    for number in (1, 2, 2, 6):
        source.send(TOPICS.samples, sample(number))
    bench.wait_for("samples_received_total", 4)
    bench.wait_for("predictions_delivered_total", 3)
    bench.reopen()
    for number in (6, 7):
        source.send(TOPICS.samples, sample(number))
    source.wait(lambda: len(predictions(source)) == 4)
    found = bench.part.snapshot()
    assert (found["duplicates_total"], found["sequence_gap"]) == (2, 3)
    sequences = [prediction["sequence"] for prediction in predictions(source)]
    assert sequences == sorted(set(sequences))


def test_samples_sent_while_the_device_is_away_are_answered(bench: Bench, source: Source) -> None:
    bench.part.stop()
    source.wait(lambda: source.payloads("status")[-1] == b"offline")
    source.send(TOPICS.samples, sample(1))
    bench.part = bench.open()
    source.wait(lambda: len(predictions(source)) == 1)


def test_an_announcement_makes_the_registry_looked_at(bench: Bench, source: Source) -> None:
    source.send(TOPICS.model, {"round": 5}, retain=True)
    wait_until(lambda: bench.looks == 1, "a look")
    bench.reopen()  # the message is retained
    wait_until(lambda: bench.looks == 2, "a look on the next connection")


def test_a_prediction_stays_until_its_consumer_has_it(careful: Bench, source: Source) -> None:
    source.send(TOPICS.samples, sample(1))
    source.wait(lambda: len(predictions(source)) >= 3)  # sent again and again
    [sequence] = {found["sequence"] for found in predictions(source)}
    assert careful.part.snapshot()["outbox_waiting"] == 1
    careful.reopen()
    for bad in (b"\xff", {"sequences": "all"}, {"sequences": [-1]}, {"sequences": [sequence + 1]}):
        source.send(TOPICS.acks, bad)
    careful.wait_for("rejected_ack_sequence_total", 1)
    assert careful.part.snapshot()["outbox_waiting"] == 1
    source.send(TOPICS.acks, {"sequences": [sequence]})
    careful.wait_for("outbox_waiting", 0)


def test_without_a_broker_it_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"127.0.0.1:{free_port()}", OutboxConfig())
    try:
        wait_until(lambda: "it refuses connections" in bench.part.problem, "said")
        assert bench.part.problem.startswith("mqtt: broker 127.0.0.1")
    finally:
        bench.close()


def test_a_damaged_outbox_is_said_and_samples_wait_at_the_broker_until_it_is_mended(
    tmp_path: Path, broker: Mosquitto, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_client.opened_later.RETRY_S", 0.1)
    (tmp_path / "outbox.db").write_bytes(b"this is not a database" * 500)
    bench = Bench(tmp_path, broker.address, OutboxConfig())
    try:
        source.wait(lambda: b"online" in source.payloads("status"))
        source.send(TOPICS.samples, sample(1))
        wait_until(lambda: "outbox.db" in bench.part.problem, "said")
        with pytest.raises(StoreError):
            bench.part.snapshot()
        (tmp_path / "outbox.db").unlink()
        source.wait(lambda: len(predictions(source)) == 1)
        wait_until(lambda: bench.part.problem == "", "said no more")
    finally:
        bench.close()
