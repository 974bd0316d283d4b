"""Models of when devices are there; import this module to have them all registered."""

from __future__ import annotations

import numpy as np

from simulation.devices.contracts import AVAILABILITIES
from simulation.devices.hashing import ClientDraws, Flags, Floats, Ids
from simulation.devices.settings import AvailabilityConfig
from simulation.devices.trace import Trace

DAY_S = 86_400.0
_HOUR_S = 3_600.0
_LONGEST_WAIT_DAYS = 60

AVAILABILITIES.register("trace")(Trace)


@AVAILABILITIES.register("always")
class Always:
    """Devices that never leave."""

    def __init__(self, config: AvailabilityConfig, draws: ClientDraws) -> None:
        del config, draws

    def until(self, clients: Ids, at_s: float) -> Floats:
        """Return infinity."""
        del at_s
        return np.full(len(clients), np.inf)

    def next_start(self, clients: Ids, at_s: float) -> Floats:
        """Return infinity: there is one window, and it has begun."""
        del at_s
        return np.full(len(clients), np.inf)


@AVAILABILITIES.register("diurnal")
class Diurnal:
    """Devices that charge at night, local time, on some nights, and now and then by day.

    A device's day begins when it is plugged in for the night, at an hour of its own. In each of
    its days it is there from then on with probability ``night_share``, and with probability
    ``day_share`` once more in what is left of the day. That second window is placed so that it
    covers each moment of the rest of the day with the same probability. Windows that touch stay
    two: a device that is unplugged for a moment loses its round.
    """

    def __init__(self, config: AvailabilityConfig, draws: ClientDraws) -> None:
        self._config = config
        self._draws = draws
        self._offsets_s = np.asarray(config.utc_offsets_h, np.float64) * _HOUR_S
        self._fractions = np.asarray(config.utc_offset_fractions, np.float64)

    def until(self, clients: Ids, at_s: float) -> Floats:
        """Return when the window ends that each client is in; ``at_s`` where it is in none."""
        shift, night = self._habits(clients)
        day = np.floor((at_s + shift) / DAY_S)
        into = (at_s + shift) - day * DAY_S
        ends = np.where(into < night, night, 0.0)
        ends[~self._at_night(clients, day)] = 0.0
        awake = np.flatnonzero(into >= night)
        begin, end = self._day_window(clients[awake], day[awake], night[awake])
        inside = (begin <= into[awake]) & (into[awake] < end)
        ends[awake[inside]] = end[inside]
        return np.where(ends > 0, np.maximum(day * DAY_S + ends - shift, at_s), at_s)

    def next_start(self, clients: Ids, at_s: float) -> Floats:
        """Return when each client's next window begins; infinity if not within 60 days."""
        starts = np.full(len(clients), np.inf)
        shift, night = self._habits(clients)
        today = np.floor((at_s + shift) / DAY_S)
        waiting = np.arange(len(clients))
        for ahead in range(_LONGEST_WAIT_DAYS):
            if not len(waiting):
                break
            who, day = clients[waiting], today[waiting] + ahead
            begin, _ = self._day_window(who, day, night[waiting])
            plugged_in = day * DAY_S - shift[waiting]
            begins = np.stack(
                [np.where(self._at_night(who, day), plugged_in, np.inf), plugged_in + begin]
            )
            begins[begins <= at_s] = np.inf
            first = begins.min(axis=0)
            found = np.isfinite(first)
            starts[waiting[found]] = first[found]
            waiting = waiting[~found]
        return starts

    def _habits(self, clients: Ids) -> tuple[Floats, Floats]:
        """Return what to add to the time for seconds since plugged in, and a night's seconds."""
        config, draws = self._config, self._draws
        offset = self._offsets_s[draws.choice("time-zone", clients, self._fractions)]
        late = (2 * draws.uniform("night-start", clients) - 1) * (config.spread_h * _HOUR_S)
        shift = offset - late + (config.starts_at_h - config.night_start_h) * _HOUR_S
        length = 0.75 + 0.5 * draws.uniform("night-length", clients)
        return shift, length * (config.night_hours * _HOUR_S)

    def _at_night(self, clients: Ids, day: Floats) -> Flags:
        drawn = self._draws.uniform("night", clients, day.astype(np.int64))
        return drawn < self._config.night_share

    def _day_window(self, clients: Ids, day: Floats, night: Floats) -> tuple[Floats, Floats]:
        """Return begin and end of the second window in seconds since plugged in; inf for none."""
        share, length = self._config.day_share, self._config.day_hours * _HOUR_S
        drawn = self._draws.uniform("day", clients, day.astype(np.int64))
        absent = drawn >= share
        # A draw below the share, in shares, is uniform again: it places the window.
        begin = night - length + (drawn / (share or 1.0)) * (DAY_S - night + length)
        end = np.minimum(begin + length, DAY_S)
        begin = np.maximum(begin, night)
        begin[absent] = np.inf
        end[absent] = np.inf
        return begin, end
