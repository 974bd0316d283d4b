import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.mosquitto import Mosquitto
from fedge.errors import StoreError
from fedge.mqtt.messages import Incoming
from fedge.mqtt.settings import BrokerConfig
from server.mqtt.consumer import PredictionConsumer, read_prediction
from server.mqtt.prediction_file import Prediction, PredictionFile
from tests.mqtt_source import Source

DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def device(broker: Mosquitto) -> Iterator[Source]:
    with Source(broker.port, "fedge/f/+/acks", name="device") as made:
        yield made


def acknowledged(device: Source) -> list[tuple[str, int]]:
    return [
        (topic.split("/")[2], sequence)
        for topic, payload, _ in list(device.heard)
        for sequence in json.loads(payload)["sequences"]
    ]


def start(broker: Mosquitto, keep: Callable[[Sequence[Prediction]], int]) -> PredictionConsumer:
    config = BrokerConfig(address=broker.address, reconnect_max_s=0.2)
    consumer = PredictionConsumer(config, "f", keep, client_id="consumer")
    consumer.start()
    wait_until(lambda: consumer.snapshot()["connected"], "connected")
    return consumer


def test_predictions_are_kept_once_and_each_time_acknowledged(
    broker: Mosquitto, device: Source, tmp_path: Path
) -> None:
    with PredictionFile(tmp_path / "p.db") as file:
        consumer = start(broker, file.keep)
        try:
            for name, sequence in (("a", 1), ("b", 1), ("a", 1), ("a", 2)):
                device.send(f"fedge/f/{name}/predictions", {"sequence": sequence})
            device.send("fedge/f/a/predictions", b"nonsense")
            device.wait(lambda: len(acknowledged(device)) == 4, DEADLINE_S)
            wait_until(lambda: consumer.snapshot()["predictions_rejected_total"] == 1)
        finally:
            consumer.stop()
        assert file.count() == 3
    assert set(acknowledged(device)) == {("a", 1), ("a", 2), ("b", 1)}
    assert consumer.snapshot()["predictions_duplicate_total"] == 1


def test_nothing_is_acknowledged_before_it_is_kept(broker: Mosquitto, device: Source) -> None:
    broken = threading.Event()
    broken.set()

    def keep(predictions: Sequence[Prediction]) -> int:
        if broken.is_set():
            raise StoreError("disk is full")
        return len(predictions)

    consumer = start(broker, keep)
    try:
        device.send("fedge/f/a/predictions", {"sequence": 1})
        wait_until(lambda: consumer.problem == "disk is full", "said")
        assert acknowledged(device) == []
        broken.clear()
        device.wait(lambda: acknowledged(device) == [("a", 1)], DEADLINE_S)
        wait_until(lambda: consumer.problem == "", "said no more")
    finally:
        consumer.stop()


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\xff", b"[1]", b"{}", b'{"sequence": -1}', b'{"sequence": true}'),
        *(b'{"sequence": 1e3}', b'{"sequence": 9223372036854775808}', b"[" * 100_000),
    ],
)
def test_what_is_no_prediction_is_passed_over(payload: bytes) -> None:
    assert read_prediction(Incoming("fedge/f/a/predictions", payload)) is None


def test_a_prediction_is_its_devices_by_the_topic_alone() -> None:
    found = read_prediction(Incoming("fedge/f/a/predictions", b'{"sequence": 4, "device": "z"}'))
    assert found is not None
    assert (found.device, found.sequence) == ("a", 4)


@pytest.mark.parametrize("device", ["", "x" * 200, "a\tb"])
def test_a_device_whose_name_has_no_topics_is_in_nobodys_way(device: str) -> None:
    topic = f"fedge/f/{device}/predictions"
    assert read_prediction(Incoming(topic, b'{"sequence": 4}')) is None
