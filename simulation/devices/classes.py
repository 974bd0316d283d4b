"""What one kind of device is like, and the presets: named mixtures of kinds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedge.naming import Registry


@dataclass(frozen=True)
class DeviceClass:
    """One kind of device; what differs between two of a kind is log-normal.

    Attributes:
        fraction: share of all clients that is of this kind.
        examples_per_s: median speed of training: examples a second, forward and backward, of a
            small convolutional network (5×5×16, 5×5×32, 64, 10 on 28×28).
        speed_sigma: standard deviation of the logarithm of the speed between devices; its tail
            is the chronically slow.
        download_mbps, upload_mbps: median bandwidth in 10^6 bits a second.
        bandwidth_sigma: the same for the bandwidth; one draw a device for both directions.
        jitter_sigma: the same from round to round, for one device's speed and bandwidth.
        latency_s: added to each transfer.
        memory_mib: what training may take of the device's memory.
        dropout_rate: probability that a round is cut off by the user, the network or the battery.
        crash_rate: probability that a round ends in a crash.
    """

    name: str
    fraction: float = 1.0
    examples_per_s: float = math.inf
    speed_sigma: float = 0.0
    download_mbps: float = math.inf
    upload_mbps: float = math.inf
    bandwidth_sigma: float = 0.0
    jitter_sigma: float = 0.0
    latency_s: float = 0.0
    memory_mib: float = math.inf
    dropout_rate: float = 0.0
    crash_rate: float = 0.0


@dataclass(frozen=True)
class Preset:
    """A mixture of kinds, whose fractions sum to 1, and when such devices are there."""

    classes: tuple[DeviceClass, ...]
    availability: str = "always"


PRESETS: Registry[Preset] = Registry("preset of devices")
