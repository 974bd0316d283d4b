"""A day without the consumer of predictions, by volume: nothing waits for it, all is delivered."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.mosquitto import Mosquitto
from edge_client.inference import Array, Prediction, Version
from edge_client.mqtt.part import MqttPart
from edge_client.mqtt.settings import MqttConfig, OutboxConfig, SchemaConfig
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig
from fedge.mqtt.messages import Incoming
from fedge.mqtt.settings import BrokerConfig
from fedge.mqtt.topics import DeviceTopics
from server.mqtt.consumer import PredictionConsumer
from server.mqtt.prediction_file import PredictionFile
from tests.window_streams import no_windows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DAY = 2_880  # one sample in thirty seconds
DEADLINE_S = 600.0
TOPICS = DeviceTopics("ward", "box")


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


class Sum:
    def __init__(self) -> None:
        self.num_answers = 0

    def predict(self, inputs: Array) -> Prediction:
        self.num_answers += 1
        return Prediction(np.array([inputs.sum()], np.float32), Version(4, "abc"), 7.5)


class Day:
    """A device that gets a day's samples while nobody takes its predictions."""

    def __init__(self, folder: Path, broker: Mosquitto, max_bytes: int) -> None:
        self.model = Sum()
        self.folder = folder
        self.broker = BrokerConfig(address=broker.address, reconnect_max_s=0.2)
        self.samples = SampleDatabase(folder / "samples.db", StoreConfig())
        outbox = OutboxConfig(max_bytes=max_bytes, acknowledge="consumer", resend_after_s=5.0)
        config = MqttConfig(broker=self.broker, schema=SchemaConfig(shape=(2,)), outbox=outbox)
        path = folder / "outbox.db"
        self.part = MqttPart(
            config, TOPICS, path, self.model, self.samples, no_windows(self.samples), lambda: None
        )
        self.part.start()
        self.num_acknowledged = 0

    def live(self) -> float:
        """Take the samples in; return the most bytes that the outbox ever had."""
        most = 0.0
        for number in range(DAY):
            body = json.dumps({"source": "s", "sequence": number, "input": [number, 0.5]})
            self.part.on_message(Incoming(TOPICS.samples, body.encode(), acknowledge=self._note))
            if number % 100 == 99 or number == DAY - 1:
                wait_until(
                    lambda number=number: self.num_acknowledged == number + 1,  # type: ignore[misc]
                    "samples are taken in",
                )
                most = max(most, self.part.snapshot()["outbox_bytes"])
        return most

    def deliver(self) -> list[int]:
        """Let the consumer come; return the numbers of the samples whose predictions it has."""
        with PredictionFile(self.folder / "kept.db") as file:
            consumer = PredictionConsumer(self.broker, "ward", file.keep, client_id="consumer")
            consumer.start()
            try:
                wait_until(lambda: self.part.snapshot()["outbox_waiting"] == 0, "all delivered")
            finally:
                consumer.stop()
        with sqlite3.connect(self.folder / "kept.db") as connection:
            rows = connection.execute("SELECT body FROM predictions ORDER BY sequence")
            return [json.loads(body)["source_sequence"] for (body,) in rows]

    def close(self) -> None:
        self.part.stop()
        self.samples.close()

    def _note(self) -> None:
        self.num_acknowledged += 1


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


def test_a_day_without_consumer_is_delivered_in_full_when_it_comes_back(
    tmp_path: Path, broker: Mosquitto
) -> None:
    PredictionFile(tmp_path / "kept.db").close()
    day = Day(tmp_path, broker, max_bytes=64 * 2**20)
    try:
        # It was here once, so that the broker queues for it.
        consumer = PredictionConsumer(day.broker, "ward", lambda _: 0, client_id="consumer")
        consumer.start()
        wait_until(lambda: consumer.snapshot()["connected"], "the consumer was here")
        consumer.stop()
        most = day.live()
        assert day.model.num_answers == DAY
        waiting = day.part.snapshot()
        assert waiting["outbox_waiting"] == DAY
        # What the broker must hold, and save again at each change, stays small.
        assert waiting["predictions_sent_total"] < DAY / 2
        assert day.deliver() == list(range(DAY))
        print(f"outbox up to {most:.0f} bytes, {day.part.snapshot()}")
    finally:
        day.close()


def test_a_day_that_does_not_fit_keeps_its_newest_predictions(
    tmp_path: Path, broker: Mosquitto
) -> None:
    bound = 2**18
    day = Day(tmp_path, broker, max_bytes=bound)
    try:
        assert day.live() <= bound
        assert day.model.num_answers == DAY
        waiting = day.part.snapshot()
        kept = int(waiting["outbox_waiting"])
        assert waiting["outbox_dropped_total"] == DAY - kept > 0
        delivered = day.deliver()
        # Some of those dropped had been sent before; all of those kept are there.
        assert set(delivered) >= set(range(DAY - kept, DAY))
        assert len(set(delivered)) == len(delivered)
    finally:
        day.close()
