"""What each client's device is like: its kind, and its own numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError
from simulation.devices import presets
from simulation.devices.classes import PRESETS, DeviceClass
from simulation.devices.hashing import ClientDraws, Floats, Ids
from simulation.devices.settings import OVERRIDES, DevicesConfig, check_sum

__all__ = ["Profile", "Profiler", "device_classes", "presets"]

_BYTES_PER_MBIT = 1e6 / 8
_BYTES_PER_MIB = float(1 << 20)


@dataclass(frozen=True, eq=False)
class Profile:
    """The devices of some clients, one entry each; what does not change from round to round.

    Attributes:
        kind: position of its kind in the preset.
        speed: examples a second of the small convolutional network.
        download, upload: bytes a second.
        jitter_sigma, latency_s, dropout_rate, crash_rate: see `DeviceClass`.
    """

    kind: npt.NDArray[np.intp]
    speed: Floats
    download: Floats
    upload: Floats
    jitter_sigma: Floats
    latency_s: Floats
    memory_bytes: Floats
    dropout_rate: Floats
    crash_rate: Floats


class Profiler:
    """Draws the devices of clients.

    Raises:
        ConfigError: there is no such preset, or an override does not fit it.
    """

    def __init__(self, config: DevicesConfig, draws: ClientDraws) -> None:
        self.classes = device_classes(config)
        self._draws = draws

    def profile(self, clients: Ids) -> Profile:
        """Return the devices of clients `[N]`."""
        draws = self._draws
        kind = draws.choice("kind", clients, self._of_kinds("fraction"))

        def each(name: str) -> Floats:
            return self._of_kinds(name)[kind]

        speed = each("examples_per_s") * self.spread("speed", clients, each("speed_sigma"))
        # One draw for both directions: where the signal is bad, both are slow.
        link = self.spread("bandwidth", clients, each("bandwidth_sigma")) * _BYTES_PER_MBIT
        return Profile(
            kind=kind,
            speed=speed,
            download=each("download_mbps") * link,
            upload=each("upload_mbps") * link,
            jitter_sigma=each("jitter_sigma"),
            latency_s=each("latency_s"),
            memory_bytes=each("memory_mib") * _BYTES_PER_MIB,
            dropout_rate=each("dropout_rate"),
            crash_rate=each("crash_rate"),
        )

    def spread(self, purpose: str, clients: Ids, sigma: Floats, round: int = 0) -> Floats:
        """Return factors `[N]`, log-normal with median 1."""
        if not sigma.any():
            return np.ones(len(clients))
        return np.exp(sigma * self._draws.normal(purpose, clients, round))

    def _of_kinds(self, name: str) -> Floats:
        return np.array([getattr(kind, name) for kind in self.classes], np.float64)


def device_classes(config: DevicesConfig) -> tuple[DeviceClass, ...]:
    """Return the kinds of devices of the preset with the configured numbers.

    Raises:
        ConfigError: there is no such preset, or an override does not fit it.
    """
    try:
        classes = list(PRESETS[config.preset].classes)
    except ConfigError as error:
        raise ConfigError(str(error), key="devices.preset") from error
    for name in OVERRIDES:
        values = getattr(config, name)
        if not values:
            continue
        if len(values) not in (1, len(classes)):
            kinds = ", ".join(kind.name for kind in classes)
            raise ConfigError(
                f"must have 1 number or one for each of {kinds}, got {len(values)}",
                key=f"devices.{name}",
            )
        if len(values) == 1:
            values = values * len(classes)
        attribute = "fraction" if name == "fractions" else name
        classes = [
            replace(kind, **{attribute: value}) for kind, value in zip(classes, values, strict=True)
        ]
    check_sum("devices.fractions", [kind.fraction for kind in classes])
    for kind in classes:
        if kind.dropout_rate + kind.crash_rate > 1:
            raise ConfigError(
                f"must leave dropout_rate + crash_rate <= 1 for {kind.name}, "
                f"got {kind.dropout_rate:g} + {kind.crash_rate:g}",
                key="devices.crash_rate",
            )
    return tuple(classes)
