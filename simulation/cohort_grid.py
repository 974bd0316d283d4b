"""The grid of a simulation: messages where a method needs them, whole cohorts where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp

from aggregation.partial import PartialAggregate
from fedge.clock import Clock
from fedge.messages import Evaluation, Refusal, WeightsRequest
from server.cohorts import CohortReport, CohortRequest, Nodes
from server.settings import ServerConfig
from simulation.attacks.methods import make_attacks
from simulation.delivery import InVirtualTime
from simulation.devices.hashing import Flags
from simulation.engine.cohort_engine import CohortEngine
from simulation.grid import SimulationGrid
from simulation.nodes import FIRST_NODE_ID
from simulation.round_figures import RoundFigures
from simulation.settings import SimulateConfig
from simulation.virtual_time import VirtualTime


class CohortSimulationGrid(SimulationGrid):
    """A `SimulationGrid` that is a `server.cohorts.CohortGrid`, in virtual time.

    Args:
        config: of the simulation.
        app: the ClientApp that every client runs where messages are needed.
        engine: trains cohorts.
        times: the devices and their time.
        figures: of the open round.
        on_push: told of each message that is queued.
        on_lost: told of each message that will never be answered.
    """

    def __init__(
        self,
        config: SimulateConfig,
        app: ClientApp,
        engine: CohortEngine,
        times: VirtualTime,
        figures: RoundFigures,
        *,
        on_push: Callable[[Message], None],
        on_lost: Callable[[Message], None],
    ) -> None:
        self._config = config
        self._engine = engine
        self._times = times
        self._figures = figures
        self._in_time = InVirtualTime(times, config.num_clients, figures)
        self._answer_s = 0.0
        super().__init__(
            app, config.num_clients, delivery=self._in_time, on_push=on_push, on_lost=on_lost
        )

    @property
    def clock(self) -> Clock:
        """Virtual time."""
        return self._times.clock

    def takes_cohorts(self, config: ServerConfig) -> bool:
        """Tell whether nobody has to be asked by a message of its own.

        Colluding attackers listen to messages, a late update answers an earlier one, and with a
        downlink codec each client is sent what leads from what it holds.
        """
        chosen = config.aggregation
        if not self._config.engine.cohorts or chosen.max_staleness > 0 or chosen.downlink_codec:
            return False
        return make_attacks(self._config.attack).update is None

    def all_nodes(self) -> Sequence[int]:
        """Return every node there is."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self._config.num_clients)

    def connected(self, nodes: Nodes) -> Flags:
        """Tell which nodes could begin now."""
        return self._times.is_free(nodes - FIRST_NODE_ID)

    def train_cohort(
        self, request: CohortRequest, merge: Callable[[PartialAggregate], None]
    ) -> CohortReport:
        """Train a cohort; see `CohortEngine.train`."""
        return self._engine.train(request, merge)

    def evaluate_cohort(
        self, request: WeightsRequest, nodes: Sequence[int]
    ) -> Iterable[Evaluation | Refusal]:
        """Let a cohort evaluate; see `CohortEngine.evaluate`."""
        return self._engine.evaluate(request, nodes)

    def take_round_metrics(self, round: int) -> dict[str, Any]:
        """Return the round's figures, and write down where virtual time stands after it."""
        self._in_time.close_round(self._answer_s)
        self._answer_s = 0.0
        self._times.keep(round)
        return {"simulation": self._figures.take(self._times.clock.monotonic())}

    def _answer(self, client: int, message: Message) -> Message:
        began = time.monotonic()
        reply = super()._answer(client, message)
        self._answer_s += time.monotonic() - began
        return reply
