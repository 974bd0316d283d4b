import pytest

from fedge.errors import ConfigError
from fedge.mqtt.topics import DeviceTopics, device_of, model_topic, predictions_filter


def test_the_topics_are_those_of_the_design() -> None:
    topics = DeviceTopics("ward", "box")
    assert topics.samples == "fedge/ward/box/samples"
    assert topics.labels == "fedge/ward/box/labels"
    assert topics.predictions == "fedge/ward/box/predictions"
    assert topics.acks == "fedge/ward/box/acks"
    assert topics.status == "fedge/ward/box/status"
    assert topics.model == model_topic("ward") == "fedge/ward/model"
    assert predictions_filter("ward") == "fedge/ward/+/predictions"
    assert device_of(topics.predictions) == "box"


@pytest.mark.parametrize("name", ["", "a/b", "+", "a#", "\0", "a\nb", "x" * 129, "\ud800"])
def test_a_name_that_means_more_to_a_broker_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        DeviceTopics("ward", name)
