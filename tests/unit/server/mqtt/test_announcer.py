import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.mosquitto import Mosquitto
from fedge.manifest import Blob, ModelManifest, SelfTest
from fedge.mqtt.settings import BrokerConfig
from server.mqtt.announcer import Announcer
from server.mqtt.settings import AnnounceConfig
from server.publisher import PublishedVersion
from tests.mqtt_source import Source

TOPIC = "fedge/ward/model"
DEADLINE_S = 60.0


def published(round: int) -> PublishedVersion:
    blob = Blob.of(b"weights of round %d" % round)
    manifest = ModelManifest(2, "run", round, "digits", "[]", *(blob,) * 3, SelfTest(blob, (), ()))
    return PublishedVersion(round, manifest, b"", b"")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def announcer(broker: Mosquitto) -> Iterator[Announcer]:
    config = AnnounceConfig("ward", BrokerConfig(address=broker.address, reconnect_max_s=0.2))
    made = Announcer(config, "run")
    yield made
    made.stop()


def rounds(source: Source) -> list[int]:
    return [json.loads(payload)["round"] for _, payload, _ in list(source.heard)]


def test_the_newest_version_is_retained(broker: Mosquitto, announcer: Announcer) -> None:
    announcer.start(published(1))
    with Source(broker.port, TOPIC) as source:
        source.wait(lambda: rounds(source) == [1], DEADLINE_S)
        announcer.announce(published(2))
        source.wait(lambda: rounds(source) == [1, 2], DEADLINE_S)
        body = json.loads(source.heard[0][1])
    assert body == {
        "run_name": published(1).manifest.run_name,
        "round": 1,
        "digest": published(1).manifest.weights.digest,
    }
    with Source(broker.port, TOPIC, name="late") as late:
        late.wait(lambda: late.heard[-1:] != [] and late.heard[-1][2], DEADLINE_S)
        assert rounds(late) == [2]


def test_a_broker_that_lost_it_is_told_again(broker: Mosquitto, announcer: Announcer) -> None:
    announcer.start(None)
    announcer.announce(published(3))
    with Source(broker.port, TOPIC) as source:
        source.wait(lambda: rounds(source) == [3], DEADLINE_S)
        broker.kill()
        (broker.folder / "mosquitto.db").unlink(missing_ok=True)
        broker.start()
        source.wait(lambda: len(rounds(source)) > 1, DEADLINE_S)
