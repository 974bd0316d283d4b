"""The topics of a fleet."""

from __future__ import annotations

from dataclasses import dataclass

from fedge.errors import ConfigError

PREFIX = "fedge"
MAX_LEVEL_BYTES = 128


@dataclass(frozen=True)
class DeviceTopics:
    """Topics of one device.

    Raises:
        ConfigError: a name cannot be a level of a topic.
    """

    fleet: str
    device: str

    def __post_init__(self) -> None:
        """Refuse names that would mean something else to a broker."""
        check_level(self.fleet, "fleet")
        check_level(self.device, "device")

    @property
    def samples(self) -> str:
        """Samples for the device."""
        return self._of("samples")

    @property
    def readings(self) -> str:
        """A sensor's readings, which the device cuts into windows."""
        return self._of("readings")

    @property
    def labels(self) -> str:
        """Labels for samples that the device has, or will have."""
        return self._of("labels")

    @property
    def predictions(self) -> str:
        """The device's answers."""
        return self._of("predictions")

    @property
    def acks(self) -> str:
        """Which predictions their consumer has."""
        return self._of("acks")

    @property
    def status(self) -> str:
        """``online`` or ``offline``, retained."""
        return self._of("status")

    @property
    def model(self) -> str:
        """The newest version, retained; of the whole fleet."""
        return model_topic(self.fleet)

    def _of(self, name: str) -> str:
        return f"{PREFIX}/{self.fleet}/{self.device}/{name}"


def model_topic(fleet: str) -> str:
    """Return the topic that announces the fleet's newest version."""
    return f"{PREFIX}/{fleet}/model"


def predictions_filter(fleet: str) -> str:
    """Return the filter of the predictions of every device of a fleet."""
    return f"{PREFIX}/{fleet}/+/predictions"


def device_of(topic: str) -> str:
    """Return the device of a topic that `predictions_filter` matches."""
    return topic.split("/")[2]


def check_level(name: str, key: str) -> None:
    """Refuse what cannot be one level of a topic.

    Raises:
        ConfigError: names the key.
    """
    length = len(name.encode(errors="replace"))
    if not 1 <= length <= MAX_LEVEL_BYTES or not name.isprintable() or set(name) & set("/+#"):
        raise ConfigError(
            f"must have 1 to {MAX_LEVEL_BYTES} printable bytes and none of / + #, got {name!r}",
            key=key,
        )
