from pathlib import Path
from typing import Any

import pytest

from edge_client.mqtt.part import link_options
from edge_client.mqtt.settings import MqttConfig
from edge_client.settings import EdgeConfig, RegistryClientConfig
from fedge.config import build
from fedge.errors import ConfigError
from fedge.mqtt.topics import DeviceTopics

ALONE = RegistryClientConfig(address="")


def test_mqtt_is_off_by_default() -> None:
    assert EdgeConfig(registry=ALONE).mqtt.broker.address == ""


def test_a_broker_needs_a_declared_shape() -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.schema\.shape"):
        build(
            EdgeConfig,
            {"registry": {"address": ""}, "mqtt": {"broker": {"address": "127.0.0.1:1883"}}},
        )


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"fleet": "a/b"}, "mqtt.fleet"),
        ({"device": "a+b"}, "mqtt.device"),
        ({"schema": {"shape": [0]}}, "mqtt.schema.shape"),
        ({"schema": {"shape": [1] * 9}}, "mqtt.schema.shape"),
        ({"schema": {"shape": [4096, 4096, 4096]}}, "mqtt.schema.shape"),
        ({"schema": {"shape": [100_000]}}, "mqtt.schema.max_payload_bytes"),
        ({"schema": {"dtype": "float64"}}, "mqtt.schema.dtype"),
        ({"outbox": {"acknowledge": "nobody"}}, "mqtt.outbox.acknowledge"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tree: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(EdgeConfig, {"registry": {"address": ""}, "mqtt": tree})
    assert caught.value.key == key


def test_a_device_is_named_by_its_configuration_then_its_name_then_its_folder() -> None:
    folder = EdgeConfig(registry=ALONE, state_dir=Path("/var/lib/box-3"))
    assert folder.mqtt_topics.device == "box-3"
    named = EdgeConfig(registry=ALONE, state_dir=Path("/var/lib/box-3"), name="ward")
    assert named.mqtt_topics.device == "ward"
    chosen = EdgeConfig(registry=ALONE, name="ward", mqtt=MqttConfig(device="door"))
    assert chosen.mqtt_topics.device == "door"


def test_a_name_that_no_topic_can_have_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.device: set it"):
        _ = EdgeConfig(registry=ALONE, name="a/b").mqtt_topics


def test_acknowledgements_are_listened_to_only_where_they_count() -> None:
    topics = DeviceTopics("f", "d")
    plain = link_options(MqttConfig(), topics)
    assert plain.client_id == "fedge-f-d"
    names = ("d/samples", "d/labels", "d/readings", "model")
    assert list(plain.subscriptions) == [f"fedge/f/{name}" for name in names]
    consumer = build(MqttConfig, {"outbox": {"acknowledge": "consumer"}})
    assert "fedge/f/d/acks" in link_options(consumer, topics).subscriptions
