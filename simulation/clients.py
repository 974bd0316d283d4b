"""The clients of a simulation: seeded by round, their ledgers kept in the run folder."""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context

from edge_client.client_app import split_client_data
from edge_client.ledger import MemoryLedger
from edge_client.participant import Participant
from edge_client.replies import MemoryReplyStore
from edge_client.worker import InProcessWorker
from fedge.durable import write_atomically
from fedge.messages import EncodedUpdate, Refusal, WeightsRequest
from fedge.privacy.noise import Draws
from fedge.rng import stream_seed
from fedge.task import Examples, Split, Task
from server.checkpoint import CheckpointStore
from simulation.settings import SimulateConfig


class SimulatedClient(Participant):
    """A participant whose draws depend on seed, round and client alone.

    Its ledger is written after each round, so that a resumed run goes on with the same account.
    Rounds that were not committed are forgotten: done again with the same draws, they give the
    same update and cost nothing more.
    """

    def __init__(
        self, config: SimulateConfig, task: Task, client: int, *, last_committed: int
    ) -> None:
        self._seed = config.server.seed
        self._client = client
        self._round = 0
        self._path = config.server.run_dir / "clients" / f"{client}.json"
        self._account = _read_ledger(self._path, last_committed)
        splits: dict[Split, Examples] = {
            split: split_client_data(task, client, config.num_clients, split)
            for split in typing.get_args(Split)
        }
        worker = InProcessWorker(task, splits.__getitem__, draws=self._draws)
        super().__init__(worker, self._account, MemoryReplyStore(), config.privacy)

    def train(self, request: WeightsRequest) -> EncodedUpdate | Refusal:
        """Answer a train request; what it cost is on disk before the answer is out."""
        self._round = request.round
        answer = super().train(request)
        if self._account.entries:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, self._account.to_json().encode())
        return answer

    def _draws(self) -> Draws:
        seed = stream_seed(self._seed, "client", round=self._round, client=self._client)
        return Draws.seeded(seed)


def make_clients(config: SimulateConfig, task: Task) -> Callable[[Context], Participant]:
    """Return a lookup that makes each client once and keeps it."""
    committed = CheckpointStore(config.server.run_dir / "checkpoints").latest()
    last_committed = 0 if committed is None else committed.round
    known: dict[int, Participant] = {}

    def client_for(context: Context) -> Participant:
        client = int(context.node_config["partition-id"])
        if client not in known:
            known[client] = SimulatedClient(config, task, client, last_committed=last_committed)
        return known[client]

    return client_for


def _read_ledger(path: Path, last_committed: int) -> MemoryLedger:
    """Return the ledger of the rounds up to the last committed one; empty for a new run."""
    try:
        ledger = MemoryLedger.from_json(path.read_text())
    except FileNotFoundError:
        return MemoryLedger()
    ledger.entries[:] = [
        entry for entry in ledger.entries if int(entry.key.rsplit("/", 3)[1]) <= last_committed
    ]
    if not ledger.entries:
        ledger.noise_multipliers.clear()
    return ledger
