"""The devices' time in a run: what a round costs in it, and who is still at work."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from aggregation.codecs import make_codec
from fedge.durable import write_atomically
from fedge.errors import CheckpointError
from fedge.messages import DeltaRequest, WeightsRequest
from fedge.params import Layout
from fedge.task import Task
from simulation.clock import VirtualClock
from simulation.devices.fleet import Fleet
from simulation.devices.hashing import Flags, Ids
from simulation.devices.schedule import Schedule
from simulation.partition.contracts import KnowsSizes
from simulation.settings import SimulateConfig

COPIES_IN_TRAINING = 4
"""Weights, gradients, the parent and momentum: what training takes of a device's memory."""
_KEPT_ROUNDS = 2


class VirtualTime:
    """Virtual seconds, kept in the run folder so that a resumed run goes on with the same.

    Args:
        config: of the simulation.
        task: tells how many examples a client has.
        last_committed: round that the run goes on after.

    Attributes:
        clock: of the whole run.

    Raises:
        CheckpointError: the file of an earlier process cannot be read.
    """

    def __init__(self, config: SimulateConfig, task: Task, *, last_committed: int) -> None:
        self.fleet = Fleet(config.devices, config.server.seed, config.num_clients)
        self._config = config
        self._task = task
        self._passes = config.devices.preset != "none"
        self._path = config.server.run_dir / "virtual-time.json"
        self._rounds = _read(self._path) if last_committed else {}
        found = self._rounds.get(str(last_committed), {"now_s": 0.0, "busy": []})
        self.clock = VirtualClock(found["now_s"])
        self._busy: dict[int, float] = dict(found["busy"])

    def is_free(self, clients: Ids) -> Flags:
        """Tell which clients can be asked now: they are there, and not at work."""
        now = self.clock.monotonic()
        free = self.fleet.available(clients, now)
        self._busy = {client: until for client, until in self._busy.items() if until > now}
        if self._busy:
            free &= ~np.isin(clients, np.fromiter(self._busy, np.int64, len(self._busy)))
        return free

    def ask(self, clients: Ids, request: WeightsRequest | DeltaRequest) -> Schedule:
        """Return what comes of asking clients the same thing now."""
        layout = request.layout
        return self.fleet.schedule(
            clients,
            round=request.round,
            start_s=self.clock.monotonic(),
            work=self._work(clients, request.hyper.local_epochs),
            bytes_down=float(bytes_down(request)),
            bytes_up=float(_payload_bytes(request.codec, layout)),
            memory_bytes=float(COPIES_IN_TRAINING * layout.size_bytes),
        )

    def note_busy(self, schedule: Schedule) -> None:
        """Remember who of those asked is still at work."""
        now = self.clock.monotonic()
        late = np.flatnonzero(schedule.stops_s > now)
        self._busy.update((int(schedule.clients[at]), float(schedule.stops_s[at])) for at in late)

    def keep(self, round: int) -> None:
        """Write down where time stands, before the round is committed."""
        if not self._passes and not self._busy and self.clock.monotonic() == 0:
            return
        state = {"now_s": self.clock.monotonic(), "busy": sorted(self._busy.items())}
        self._rounds[str(round)] = state
        newest = sorted(self._rounds, key=int)[-_KEPT_ROUNDS:]
        self._rounds = {key: self._rounds[key] for key in newest}
        write_atomically(self._path, json.dumps(self._rounds).encode())

    def _work(self, clients: Ids, epochs: int) -> Any:
        """Return example passes by client; where no time passes nobody needs to know."""
        if not self._passes:
            return np.zeros(len(clients))
        task, num_clients = self._task, self._config.num_clients
        if isinstance(task, KnowsSizes):
            sizes = [task.num_examples(int(client), num_clients) for client in clients]
        else:
            sizes = [self._count(int(client)) for client in clients]
        return epochs * (1 - self._config.holdout_fraction) * np.asarray(sizes, np.float64)

    def _count(self, client: int) -> int:
        try:
            return len(self._task.client_data(client, self._config.num_clients))
        except Exception:  # it cannot train either: its round counts it and says why
            return 0


def bytes_down(request: WeightsRequest | DeltaRequest) -> int:
    """Return the bytes of the model, or of the way to it, that a request carries."""
    if isinstance(request, DeltaRequest):
        return sum(map(len, request.downlink.payloads))
    return request.layout.size_bytes


@lru_cache(maxsize=64)
def _payload_bytes(codec: str, layout: Layout) -> int:
    """Return the length of a typical update; codecs differ little between two of them."""
    coder, rng = make_codec(codec), np.random.default_rng(0)
    sample = rng.standard_normal(layout.size, np.float32)
    encoded, _ = coder.encode(sample, coder.init(layout), rng)
    return len(encoded.payload)


def _read(path: Path) -> dict[str, Any]:
    try:
        return {
            str(int(round)): {
                "now_s": float(state["now_s"]),
                "busy": [(int(client), float(until_s)) for client, until_s in state["busy"]],
            }
            for round, state in json.loads(path.read_text()).items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}; begin the run anew") from error
