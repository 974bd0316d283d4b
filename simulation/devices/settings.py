"""The section ``devices`` of ``fedge-simulate``: what devices there are and when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedge.config import limited
from fedge.errors import ConfigError

AS_PRESET = "preset"
OVERRIDES = (
    "fractions",
    "examples_per_s",
    "speed_sigma",
    "download_mbps",
    "upload_mbps",
    "bandwidth_sigma",
    "jitter_sigma",
    "latency_s",
    "memory_mib",
    "dropout_rate",
    "crash_rate",
)
_POSITIVE = ("examples_per_s", "download_mbps", "upload_mbps")
_SHARES = ("fractions", "dropout_rate", "crash_rate")
_UTC_OFFSETS_H = (-6.0, -4.0, 1.0, 2.0, 3.0, 5.5, 8.0, 10.0)
_UTC_OFFSET_FRACTIONS = (0.076, 0.101, 0.159, 0.115, 0.039, 0.252, 0.252, 0.006)
"""North America, Latin America, Europe, Africa, the Middle East, Asia (two halves), Oceania.

Source: internet users by region, 2020 (learnbonds.com: 7.6, 10.1, 15.9, 11.5, 3.9, 50.3, 0.6 %);
that each region lies at one offset and Asia at two, and the last 0.1 % of Asia, are assumed.
"""


@dataclass(frozen=True)
class AvailabilityConfig:
    """When devices are there.

    Attributes:
        name: one of `simulation.devices.availability`, or ``preset`` for that of the preset.
        leaves_mid_round: whether a device that was asked stops when its window ends.
        night_share: ``diurnal``: probability that a device charges and is free in a night.
        night_start_h: local hour when it is plugged in, and night_hours for how long; both on
            average: each device has habits of its own, with starts up to spread_h off either way
            and lengths up to a quarter off.
        day_share: probability that it is there once more, in the rest of the day, for day_hours.
        utc_offsets_h, utc_offset_fractions: time zones, and the share of devices in each.
        starts_at_h: hour of the day, UTC, at virtual second 0.
        trace: ``trace``: a CSV file with columns client, start_s, end_s: when each client is
            there. Further clients repeat those of the file in turn.
        trace_period_s: after how many seconds a trace repeats; 0 takes its last end_s.

    Source: Bonawitz et al., Towards Federated Learning at Scale: System Design, MLSys 2019: in one
    country four times as many devices take part at the peak, at night, as when they are fewest,
    and so they do here by default. That 60 % are there at the peak, and all hours, are assumed.
    """

    name: str = AS_PRESET
    leaves_mid_round: bool = True
    night_share: float = limited(0.6, ge=0, le=1)
    night_start_h: float = limited(22.5, ge=0, lt=24)
    night_hours: float = limited(8.0, gt=0, le=18)
    spread_h: float = limited(1.5, ge=0, le=12)
    day_share: float = limited(0.75, ge=0, le=1)
    day_hours: float = limited(4.0, gt=0, le=24)
    utc_offsets_h: tuple[float, ...] = _UTC_OFFSETS_H
    utc_offset_fractions: tuple[float, ...] = _UTC_OFFSET_FRACTIONS
    starts_at_h: float = limited(0.0, ge=0, lt=24)
    trace: Path | None = None
    trace_period_s: float = limited(0.0, ge=0)

    def __post_init__(self) -> None:
        """Refuse time zones that do not exist, or shares that do not sum to 1."""
        if len(self.utc_offsets_h) != len(self.utc_offset_fractions):
            raise ConfigError(
                f"must be one share for each of the {len(self.utc_offsets_h)} offsets of "
                f"utc_offsets_h, got {len(self.utc_offset_fractions)}",
                key="utc_offset_fractions",
            )
        for index, offset in enumerate(self.utc_offsets_h):
            if not -12 <= offset <= 14:
                raise ConfigError(
                    f"must be >= -12 and <= 14, got {offset!r}", key=f"utc_offsets_h[{index}]"
                )
        _check_each("utc_offset_fractions", self.utc_offset_fractions, most=1.0)
        check_sum("utc_offset_fractions", self.utc_offset_fractions)


@dataclass(frozen=True)
class DevicesConfig:
    """What devices the clients run on. The default takes no virtual time and never fails.

    A number of the preset is overridden by a list: of one value for all kinds of its devices, or
    of one a kind, in the preset's order. An empty list leaves the preset's.

    Attributes:
        preset: one of `simulation.devices.presets`.
        example_cost: work of one example of the model that is trained, in examples of the small
            convolutional network that ``examples_per_s`` speaks of.
        loss_is_noticed: whether the server learns at once that a device has failed; if not, it
            waits for it until the deadline, as Flower's does.
        fractions: share of each kind of the preset; sums to 1.
        examples_per_s, speed_sigma, download_mbps, upload_mbps, bandwidth_sigma, jitter_sigma,
            latency_s, memory_mib, dropout_rate, crash_rate: see
            `simulation.devices.classes.DeviceClass`.
    """

    preset: str = "none"
    availability: AvailabilityConfig = field(default_factory=AvailabilityConfig)
    example_cost: float = limited(1.0, gt=0)
    loss_is_noticed: bool = False
    fractions: tuple[float, ...] = ()
    examples_per_s: tuple[float, ...] = ()
    speed_sigma: tuple[float, ...] = ()
    download_mbps: tuple[float, ...] = ()
    upload_mbps: tuple[float, ...] = ()
    bandwidth_sigma: tuple[float, ...] = ()
    jitter_sigma: tuple[float, ...] = ()
    latency_s: tuple[float, ...] = ()
    memory_mib: tuple[float, ...] = ()
    dropout_rate: tuple[float, ...] = ()
    crash_rate: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that no device can have."""
        for name in OVERRIDES:
            most = 1.0 if name in _SHARES else math.inf
            _check_each(name, getattr(self, name), most=most, positive=name in _POSITIVE)
        if self.fractions:
            check_sum("fractions", self.fractions)


def check_sum(key: str, fractions: Sequence[float]) -> None:
    """Refuse fractions that do not sum to 1.

    Raises:
        ConfigError: says what they sum to.
    """
    total = math.fsum(fractions)
    if abs(total - 1) > 1e-6:
        raise ConfigError(f"must sum to 1, but {list(fractions)} sums to {total:g}", key=key)


def _check_each(
    key: str, values: Sequence[float], *, most: float = math.inf, positive: bool = False
) -> None:
    bounds = "finite and " + ("> 0" if positive else ">= 0")
    if most < math.inf:
        bounds += f" and <= {most:g}"
    for index, value in enumerate(values):
        least = value > 0 if positive else value >= 0
        if not (math.isfinite(value) and least and value <= most):
            raise ConfigError(f"must be {bounds}, got {value!r}", key=f"{key}[{index}]")
