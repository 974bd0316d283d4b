"""What devices spend whose updates come too late, or never: a deployment's would have spent it too.

They are not trained, since nobody would see the result, but a ledger counts what is reserved, and
that comes before the first step. What else such a device would remember (error feedback) stays
as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedge.messages import Refusal
from fedge.task import Task
from server.cohorts import CohortRequest
from simulation.client_state import ClientState
from simulation.clients import ClientData, CohortClient
from simulation.settings import SimulateConfig
from simulation.state_store import StateStore

_CLIENTS_AT_ONCE = 64
"""What they remember is read with their ledgers: bounds the memory."""


class AbsentClients:
    """Charges the ledgers of clients that were asked and not trained.

    Args:
        config: of the simulation.
        task: what is learnt.
        store: where the ledgers are.
    """

    def __init__(self, config: SimulateConfig, task: Task, store: StateStore) -> None:
        self._config = config
        self._data = ClientData(config, task)
        self._store = store

    def charge(self, request: CohortRequest, clients: Sequence[int]) -> None:
        """Reserve the round's cost of each; one that cannot begin spends nothing."""
        if not self._config.privacy.enabled or not clients:
            return
        for start in range(0, len(clients), _CLIENTS_AT_ONCE):
            self._charge(request, clients[start : start + _CLIENTS_AT_ONCE])

    def _charge(self, request: CohortRequest, clients: Sequence[int]) -> None:
        found = self._store.get(clients)
        states = {client: ClientState(client, found.get(client)) for client in clients}
        for client, state in states.items():
            self._reserve(request, client, state)
        after = {client: state.to_stored() for client, state in states.items()}
        self._store.put(
            request.request.round,
            {client: state for client, state in after.items() if state is not None},
        )

    def _reserve(self, request: CohortRequest, client: int, state: ClientState) -> None:
        try:
            examples = self._data.examples(client, "train")
        except Exception:  # it would have failed before it reserved anything
            return
        who = CohortClient(self._config, client, examples, state, request.request)
        begun = who.participant.begin(request.request, request.key)
        assert isinstance(begun, Refusal) or begun.reservation is not None
