"""When a device may train: each condition reads one thing and says why training is to wait.

A condition that has held training back lets it go on only when the value is well below the limit,
so that it does not start and stop all the time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from edge_client.settings import TrainingProcessConfig, parse_hours
from fedge.naming import Registry

_log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
COOLER_BY_C = 5.0
LESS_BUSY = 0.8
"""Share of the limit that other processes' load must fall below."""

_THERMAL_ZONES = Path("/sys/class/thermal")
_CPU_TIMES = Path("/proc/stat")
_IDLE_FIELDS = (3, 4)  # idle, iowait
_NUM_CPU_FIELDS = 8  # what follows is counted in user and nice as well


class Condition(Protocol):
    """One reason why training may have to wait."""

    def reason(self) -> str:
        """Return why training is to wait now; empty where it need not."""
        ...


CONDITIONS: Registry[Callable[[TrainingProcessConfig], Condition | None]] = Registry("condition")
"""Each makes its condition of a configuration, or None where that does not ask for it."""


class OpenHours:
    """Training within some hours of the device's local time alone.

    Args:
        hours: ``HH:MM-HH:MM``; a span that ends before it begins passes midnight.
        now: local time.
    """

    def __init__(self, hours: str, now: Callable[[], datetime] = datetime.now) -> None:
        self._hours = hours
        self._begin, self._end = parse_hours(hours)
        self._now = now

    def reason(self) -> str:
        """Return why training is to wait now; empty where it need not."""
        now = self._now().time()
        if self._begin < self._end:
            is_open = self._begin <= now < self._end
        else:
            is_open = now >= self._begin or now < self._end
        return "" if is_open else f"it is outside of training.hours ({self._hours})"


class ProcessorLoad:
    """Training only while other processes leave the cores alone.

    Args:
        limit: per cent of all cores together.
        read: returns seconds that all cores were busy, and were there, since the start.
        own: returns seconds that this process was busy.
    """

    def __init__(
        self,
        limit: float,
        read: Callable[[], tuple[float, float]],
        own: Callable[[], float] = time.process_time,
    ) -> None:
        self._limit = limit
        self._read = read
        self._own = own
        self._last = (*read(), own())
        self._reason = ""

    def reason(self) -> str:
        """Return why training is to wait now, by the load since the last time it was asked."""
        busy, total, own = now = (*self._read(), self._own())
        passed = total - self._last[1]
        if passed > 0:
            others = busy - self._last[0] - (own - self._last[2])
            self._reason = self._judge(100 * max(0.0, others) / passed)
            self._last = now
        return self._reason

    def _judge(self, others: float) -> str:
        limit = self._limit * (LESS_BUSY if self._reason else 1)
        if others <= limit:
            return ""
        return (
            f"other processes use {others:.0f} % of the processor, above "
            f"training.max_cpu_percent ({self._limit:g})"
        )


class Temperature:
    """Training only while the device is cool.

    Args:
        limit_c: degrees Celsius.
        read: returns the hottest sensor's degrees, None where there is none.
    """

    def __init__(self, limit_c: float, read: Callable[[], float | None]) -> None:
        self._limit_c = limit_c
        self._read = read
        self._is_waiting = False
        if read() is None:
            _log.warning("training.max_temperature_c has no effect: no sensor can be read")

    def reason(self) -> str:
        """Return why training is to wait now; empty where it need not."""
        degrees = self._read()
        if degrees is None:
            return ""
        limit_c = self._limit_c - (COOLER_BY_C if self._is_waiting else 0)
        self._is_waiting = degrees > limit_c
        if not self._is_waiting:
            return ""
        return f"it is {degrees:.0f} °C hot, above training.max_temperature_c ({self._limit_c:g})"


@CONDITIONS.register("hours")
def _hours(config: TrainingProcessConfig) -> Condition | None:
    return OpenHours(config.hours) if config.hours else None


@CONDITIONS.register("cpu")
def _cpu(config: TrainingProcessConfig) -> Condition | None:
    limit = config.max_cpu_percent
    return ProcessorLoad(limit, read_processor) if limit else None


@CONDITIONS.register("temperature")
def _temperature(config: TrainingProcessConfig) -> Condition | None:
    limit_c = config.max_temperature_c
    return Temperature(limit_c, read_temperature) if limit_c else None


class Gate:
    """All conditions of a configuration, looked at once a second at most.

    Args:
        conditions: asked in order.
        clock: seconds.
    """

    def __init__(
        self, conditions: list[Condition], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._conditions = conditions
        self._clock = clock
        self._checked_at = -CHECK_INTERVAL_S
        self._reason = ""

    @staticmethod
    def of(config: TrainingProcessConfig) -> Gate:
        """Return the gate of a configuration."""
        made = [CONDITIONS[name](config) for name in CONDITIONS]
        return Gate([condition for condition in made if condition is not None])

    def __bool__(self) -> bool:
        """Tell whether there are any conditions."""
        return bool(self._conditions)

    def reason(self) -> str:
        """Return why training is to wait; empty where it need not."""
        now = self._clock()
        if self._conditions and now - self._checked_at >= CHECK_INTERVAL_S:
            # Each is asked every time, so that each knows what has changed since the last time.
            reasons = [condition.reason() for condition in self._conditions]
            self._reason = "; ".join(reason for reason in reasons if reason)
            self._checked_at = now
        return self._reason


def read_processor(path: Path = _CPU_TIMES) -> tuple[float, float]:
    """Return seconds that all cores together were busy, and seconds in all, since the start."""
    ticks = [int(value) for value in path.read_text().split("\n", 1)[0].split()[1:]]
    ticks = ticks[:_NUM_CPU_FIELDS]
    per_second = os.sysconf("SC_CLK_TCK")
    idle = sum(ticks[number] for number in _IDLE_FIELDS)
    return (sum(ticks) - idle) / per_second, sum(ticks) / per_second


def read_temperature(folder: Path = _THERMAL_ZONES) -> float | None:
    """Return the hottest zone's degrees Celsius; None where no zone can be read."""
    degrees = []
    for zone in folder.glob("thermal_zone*/temp"):
        try:
            degrees.append(int(zone.read_text()) / 1000)
        except (OSError, ValueError):  # a zone that is switched off
            continue
    return max(degrees, default=None)
