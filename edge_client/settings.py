"""Configuration of ``fedge-edge``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path

from edge_client.mqtt.settings import MqttConfig
from fedge.config import limited
from fedge.errors import ConfigError
from fedge.mqtt.topics import DeviceTopics
from fedge.settings import PrivacyConfig, TaskConfig, TlsConfig, is_loopback, split_address

_CORE_SPAN = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


@dataclass(frozen=True)
class NodeConfig:
    """How the device reaches the SuperLink; an empty address keeps it out of training."""

    superlink: str = "127.0.0.1:9092"
    poll_interval_s: float = limited(0.1, gt=0)
    reconnect_max_s: float = limited(30.0, gt=0)
    tls: TlsConfig = field(default_factory=TlsConfig)

    def __post_init__(self) -> None:
        """Refuse plaintext beyond loopback."""
        if not self.superlink:
            return
        split_address(self.superlink, "superlink")
        if not is_loopback(self.superlink) and self.tls.ca is None:
            raise ConfigError(f"{self.superlink} is not on loopback: set tls.ca", key="superlink")


@dataclass(frozen=True)
class RegistryClientConfig:
    """Where new model versions come from; an empty address serves what is on disk.

    Attributes:
        release_public_key: Ed25519 public key (PEM) that this device pins.
        keep_versions: last versions kept on the device.
    """

    address: str = "127.0.0.1:9093"
    release_public_key: Path | None = None
    keep_versions: int = limited(3, ge=2)
    tls: TlsConfig = field(default_factory=TlsConfig)

    def __post_init__(self) -> None:
        """Refuse plaintext beyond loopback and versions that nobody signed."""
        if not self.address:
            return
        split_address(self.address, "address")
        if not is_loopback(self.address) and self.tls.ca is None:
            raise ConfigError(f"{self.address} is not on loopback: set tls.ca", key="address")
        if self.release_public_key is None:
            raise ConfigError(
                "is needed to verify versions: the server writes it as release.key.pub",
                key="release_public_key",
            )


@dataclass(frozen=True)
class ModelsConfig:
    """When a version is taken out of service again, for the one before it.

    Attributes:
        max_metric_drop: a version is left if the metric on this device's labelled holdout samples
            (accuracy, or R² of numbers) is surely lower by more than this; 0 does not look.
        min_labelled: fewer labelled holdout samples say nothing.
        max_crashes: crashes of the daemon within ``healthy_s`` of serving a version, one after the
            other, that make it the version's fault; 0 does not count them.
        max_kills: the same for deaths of any kind, kills and power cuts too.
        probation_s: seconds after a swap in which the metric is looked at as labels come in.
        check_s: seconds between such looks.
    """

    max_metric_drop: float = limited(0.1, ge=0, le=1)
    min_labelled: int = limited(30, ge=2)
    max_crashes: int = limited(3, ge=0)
    max_kills: int = limited(20, ge=1)
    healthy_s: float = limited(60.0, gt=0)
    probation_s: float = limited(3600.0, ge=0)
    check_s: float = limited(30.0, gt=0)


@dataclass(frozen=True)
class InferenceConfig:
    """The local prediction service.

    Attributes:
        socket: Unix socket; empty takes ``state_dir/inference.sock``.
        address: ``host:port`` to serve on besides; empty serves on the socket alone.
        token_file: file whose first line callers of the address must present; needed beyond
            loopback.
        num_threads: of each call of the runtime.
        max_waiting: requests waiting at most; beyond it they are refused at once.
        max_rows: examples in one request at most.
        max_request_bytes: size of one request at most.
        max_batch: waiting examples that share one call of the runtime; 1 is no micro-batching.
        max_wait_us: how long the first of them waits for others; 0 takes those that came while
            another call ran.
        template, plan: the model to begin with, for a device that cannot load the task's code;
            empty asks the task.
    """

    socket: Path | None = None
    address: str = ""
    token_file: Path | None = None
    num_threads: int = limited(1, ge=1)
    max_waiting: int = limited(64, ge=1)
    max_rows: int = limited(1024, ge=1)
    max_request_bytes: int = limited(4 * 1024**2, ge=1024)
    max_batch: int = limited(1, ge=1, le=256)
    max_wait_us: float = limited(0.0, ge=0, le=100_000)
    template: Path | None = None
    plan: Path | None = None
    tls: TlsConfig = field(default_factory=TlsConfig)

    def __post_init__(self) -> None:
        """Refuse half a model, and plaintext or open service beyond loopback."""
        if (self.template is None) != (self.plan is None):
            raise ConfigError("template and plan belong together: give both", key="template")
        if not self.address:
            return
        split_address(self.address, "address")
        if not is_loopback(self.address) and (self.tls.cert is None or self.token_file is None):
            raise ConfigError(
                f"{self.address} is not on loopback: set tls.cert, tls.key and token_file",
                key="address",
            )


@dataclass(frozen=True)
class StoreConfig:
    """The device's own samples.

    Attributes:
        holdout_fraction: share of samples (by a stable hash of the id) never trained on.
        retention: which labelled samples stay when there is no room for all: the newest, or a
            uniform sample of all that were ever labelled.
    """

    max_bytes: int = limited(64 * 1024 * 1024, ge=4096)
    max_age_s: float = limited(90 * 86400.0, gt=0)
    holdout_fraction: float = limited(0.1, ge=0, lt=1)
    retention: str = limited("recency", choices=("recency", "reservoir"))


@dataclass(frozen=True)
class TrainingProcessConfig:
    """The child process that trains.

    Attributes:
        deadline_s: of one round, pauses included.
        cores: it runs on: ``auto``, ``all``, or numbers such as ``0,2-3``.
        max_memory_mib: it may allocate in all; 0 takes half of the machine's memory.
        hours: of local time in which it trains, such as ``22:00-06:00``; empty is always.
        max_cpu_percent: of all cores, that other processes may use while it trains; 0 is no limit.
        max_temperature_c: of the hottest sensor while it trains; 0 is no limit.
    """

    nice: int = limited(19, ge=0, le=19)
    num_threads: int = limited(1, ge=1)
    deadline_s: float = limited(3600.0, gt=0)
    cores: str = "auto"
    max_memory_mib: int = limited(0, ge=0)
    hours: str = ""
    max_cpu_percent: float = limited(0.0, ge=0, le=100)
    max_temperature_c: float = limited(0.0, ge=0)

    def __post_init__(self) -> None:
        """Refuse cores and hours that cannot be read."""
        parse_cores(self.cores)
        if self.hours:
            parse_hours(self.hours)


def parse_cores(text: str) -> frozenset[int] | None:
    """Return the cores that a text such as ``0,2-3`` names; None for ``auto`` and ``all``.

    Raises:
        ConfigError: it is none of these.
    """
    if text in ("auto", "all"):
        return None
    cores: set[int] = set()
    for part in text.split(","):
        match = _CORE_SPAN.fullmatch(part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(
                f"must be auto, all or cores such as 0,2-3, got {text!r}", key="cores"
            )
        cores |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(cores)


def parse_hours(text: str) -> tuple[time, time]:
    """Return begin and end of ``HH:MM-HH:MM``.

    Raises:
        ConfigError: it is not of that form, or says nothing.
    """
    begin, _, end = text.partition("-")
    try:
        span = time.fromisoformat(begin.strip()), time.fromisoformat(end.strip())
    except ValueError:
        raise ConfigError(f"must be HH:MM-HH:MM, got {text!r}", key="hours") from None
    if span[0] == span[1]:
        raise ConfigError(f"begins when it ends: {text!r}; leave it out for always", key="hours")
    return span


@dataclass(frozen=True)
class EdgeConfig:
    """Everything that ``fedge-edge`` reads.

    Attributes:
        state_dir: the one folder that holds all of this device's state.
        name: shown in logs; empty takes the folder's name.
        metrics_address: ``host:port`` of the Prometheus page, on loopback; empty switches it off.
    """

    state_dir: Path = Path("edge-state")
    name: str = ""
    metrics_address: str = ""
    task: TaskConfig = field(default_factory=TaskConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    node: NodeConfig = field(default_factory=NodeConfig)
    registry: RegistryClientConfig = field(default_factory=RegistryClientConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    training: TrainingProcessConfig = field(default_factory=TrainingProcessConfig)
    mqtt: MqttConfig = field(default_factory=MqttConfig)

    def __post_init__(self) -> None:
        """Refuse to show this device's numbers to others, who are not asked who they are."""
        if not self.metrics_address:
            return
        split_address(self.metrics_address, "metrics_address")
        if not is_loopback(self.metrics_address):
            raise ConfigError(
                f"{self.metrics_address} is not on loopback: let a proxy on this device that "
                "knows its callers pass the page on",
                key="metrics_address",
            )

    @property
    def socket_path(self) -> Path:
        """Path of the Unix socket that predictions are served on."""
        return self.inference.socket or self.state_dir / "inference.sock"

    @property
    def samples_path(self) -> Path:
        """Path of the sample database."""
        return self.state_dir / "samples.db"

    @property
    def steps_path(self) -> Path:
        """Path of the file that keeps the steps of the round under way."""
        return self.state_dir / "round.steps"

    @property
    def mqtt_topics(self) -> DeviceTopics:
        """This device's topics.

        Raises:
            ConfigError: the name that would stand in them cannot.
        """
        name = self.mqtt.device or self.name or self.state_dir.resolve().name
        try:
            return DeviceTopics(self.mqtt.fleet, name)
        except ConfigError as error:
            raise ConfigError(f"set it: {error}", key="mqtt.device") from error
