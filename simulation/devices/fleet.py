"""The devices of a simulation: who is there, and what comes of asking them."""

from __future__ import annotations

import numpy as np

from fedge.errors import ConfigError
from simulation.devices import availability
from simulation.devices.classes import PRESETS
from simulation.devices.contracts import AVAILABILITIES, Availability
from simulation.devices.hashing import ClientDraws, Flags, Floats, Ids
from simulation.devices.profiles import Profile, Profiler
from simulation.devices.schedule import Codes, Outcome, Phases, Schedule
from simulation.devices.settings import AS_PRESET, DevicesConfig

__all__ = ["Fleet", "availability", "check_devices"]

_CLIENTS_AT_ONCE = 1 << 14
"""Their numbers stay in a core's cache: 63 ms for a million clients, 134 ms with 16 times it."""


class Fleet:
    """Every client's device, as functions of (seed, client, round, time).

    Nothing is drawn before it is asked for, and the same question always gets the same answer,
    whatever the order of the clients and whoever else is asked about.

    Args:
        config: the section ``devices``.
        seed: of the run.
        num_clients: ids go from 0 to one less.

    Raises:
        ConfigError: the section cannot be used; names the dotted key.
    """

    def __init__(self, config: DevicesConfig, seed: int, num_clients: int) -> None:
        draws = ClientDraws(seed)
        self._config = config
        self._num_clients = num_clients
        self._draws = draws
        self._profiler = Profiler(config, draws)
        self._availability = _make_availability(config, draws)

    def available(self, clients: Ids, at_s: float) -> Flags:
        """Tell which clients can be asked at a moment."""
        self._check(clients)
        there = np.empty(len(clients), np.bool_)
        for part in _parts(len(clients)):
            there[part] = self._availability.until(clients[part], at_s) > at_s
        return there

    def next_available_s(self, clients: Ids, at_s: float) -> float:
        """Return when the next of these clients' windows begins, after ``at_s``; inf for never.

        A server that waits for devices may let its clock go on to there at once.
        """
        self._check(clients)
        starts = [
            float(self._availability.next_start(clients[part], at_s).min())
            for part in _parts(len(clients))
        ]
        return min(starts, default=np.inf)

    def profile(self, clients: Ids) -> Profile:
        """Return what the clients' devices are like."""
        self._check(clients)
        return self._profiler.profile(clients)

    def schedule(
        self,
        clients: Ids,
        *,
        round: int,
        start_s: float,
        work: Floats,
        bytes_down: float,
        bytes_up: float,
        memory_bytes: float = 0,
    ) -> Schedule:
        """Return what comes of asking clients to train in a round.

        Args:
            clients: in the order asked `[N]`.
            round: the same client meets with something else in each.
            start_s: when they are asked, in virtual seconds.
            work: examples times epochs of each `[N]`.
            bytes_down: length of what each is sent.
            bytes_up: length of what each sends back.
            memory_bytes: what training takes; devices with less do not begin.
        """
        profile = self.profile(clients)
        phases = self._phases(profile, clients, round, work, bytes_down, bytes_up)
        outcome, stops = self._failures(profile, clients, round, phases.total_s)
        if self._config.availability.leaves_mid_round:
            stops = self._leave(clients, start_s, outcome, stops)
        unfit = (profile.memory_bytes < memory_bytes) & (phases.latency_s <= stops)
        outcome[unfit] = Outcome.MEMORY
        stops = np.where(unfit, phases.latency_s, stops)
        done = outcome == Outcome.OK
        # One that is done has sent all, also where that takes no time; one that is unfit nothing.
        downloaded = np.where(done, 1.0, phases.downloaded(stops))
        uploaded = np.where(done, 1.0, phases.uploaded(stops))
        return Schedule(
            clients=clients,
            finish_s=np.where(done, start_s + stops, np.inf),
            stops_s=start_s + stops,
            outcome=outcome,
            bytes_down=np.where(unfit, 0.0, downloaded * bytes_down),
            bytes_up=np.where(unfit, 0.0, uploaded * bytes_up),
        )

    def _phases(
        self,
        profile: Profile,
        clients: Ids,
        round: int,
        work: Floats,
        bytes_down: float,
        bytes_up: float,
    ) -> Phases:
        sigma = profile.jitter_sigma
        speed = profile.speed * self._profiler.spread("speed-jitter", clients, sigma, round)
        link = self._profiler.spread("link-jitter", clients, sigma, round)
        return Phases(
            latency_s=profile.latency_s,
            download_s=bytes_down / (profile.download * link),
            compute_s=work * self._config.example_cost / speed,
            upload_s=bytes_up / (profile.upload * link),
        )

    def _failures(
        self, profile: Profile, clients: Ids, round: int, total: Floats
    ) -> tuple[Codes, Floats]:
        """Return outcomes, ok or failed, and when each stops, in seconds from the start."""
        fails = np.full(len(clients), Outcome.OK, np.int8)
        either = profile.dropout_rate + profile.crash_rate
        if not either.any():
            return fails, total
        drawn = self._draws.uniform("failure", clients, round)
        fails[drawn < either] = Outcome.CRASH
        fails[drawn < profile.dropout_rate] = Outcome.DROPOUT
        part = self._draws.uniform("failure-time", clients, round)
        return fails, np.where(fails > 0, part * total, total)

    def _leave(self, clients: Ids, start_s: float, outcome: Codes, stops: Floats) -> Floats:
        """Mark those whose window ends before they stop, and return when each stops now."""
        left = self._availability.until(clients, start_s) - start_s
        gone = (left < stops) | (left <= 0)
        outcome[gone] = Outcome.UNAVAILABLE
        return np.where(gone, left, stops)

    def _check(self, clients: Ids) -> None:
        if len(clients) and not (clients.min() >= 0 and clients.max() < self._num_clients):
            raise IndexError(f"client ids go from 0 to {self._num_clients - 1}")


def check_devices(config: DevicesConfig) -> None:
    """Refuse what cannot be used, trace file included.

    Raises:
        ConfigError: names the dotted key.
    """
    Fleet(config, seed=0, num_clients=1)


def _make_availability(config: DevicesConfig, draws: ClientDraws) -> Availability:
    name = config.availability.name
    if name == AS_PRESET:
        name = PRESETS[config.preset].availability
    try:
        make = AVAILABILITIES[name]
    except ConfigError as error:
        raise ConfigError(f"{error}, {AS_PRESET}", key="devices.availability.name") from error
    return make(config.availability, draws)


def _parts(length: int) -> list[slice]:
    return [slice(at, at + _CLIENTS_AT_ONCE) for at in range(0, length, _CLIENTS_AT_ONCE)]
