"""The clients of a simulation: seeded by round, their ledgers kept in the run folder."""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_client.client_app import split_client_data
from edge_client.held_weights import HeldWeights
from edge_client.ledger import MemoryLedger
from edge_client.participant import Participant
from edge_client.worker import InProcessWorker
from fedge.durable import write_atomically
from fedge.messages import DeltaRequest, EncodedUpdate, Refusal, WeightsRequest
from fedge.privacy.noise import Draws
from fedge.rng import stream, stream_seed
from fedge.task import Examples, Split, Task
from simulation.client_memory import ClientReplies
from simulation.settings import SimulateConfig


class SimulatedClient(Participant):
    """A participant whose draws depend on seed, round and client alone.

    Its ledger and memory are written in each round, so that a resumed run goes on with the same.
    Rounds that were not committed are forgotten: done again with the same draws, they give the
    same update and cost nothing more.

    Args:
        config: of the simulation.
        task: what is learnt.
        client: which one, from 0.
        last_committed: round after which its ledger goes on.
        poison: changes what it trains on; None leaves it as it is.
    """

    def __init__(
        self,
        config: SimulateConfig,
        task: Task,
        client: int,
        *,
        last_committed: int,
        poison: Callable[[Examples], Examples] | None = None,
    ) -> None:
        self._seed = config.server.seed
        self._client = client
        self._round = 0
        folder = config.server.run_dir / "clients"
        self._path = folder / f"{client}.json"
        self._account = _read_ledger(self._path, last_committed)
        splits: dict[Split, Examples] = {
            split: split_client_data(task, client, config.num_clients, split)
            for split in typing.get_args(Split)
        }
        if poison is not None:
            splits["train"] = poison(splits["train"])
        worker = InProcessWorker(task, splits.__getitem__, draws=self._draws)
        super().__init__(
            worker,
            self._account,
            ClientReplies(folder, client, last_committed=last_committed),
            config.privacy,
            held=HeldWeights(),
            rng=self._codec_rng,
        )

    def train(self, request: WeightsRequest | DeltaRequest) -> EncodedUpdate | Refusal:
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

    def _codec_rng(self) -> np.random.Generator:
        return stream(self._seed, "codec", round=self._round, client=self._client)


def _read_ledger(path: Path, last_committed: int) -> MemoryLedger:
    """Return the ledger of the rounds up to the last committed one; empty for a new run."""
    try:
        ledger = MemoryLedger.from_json(path.read_text())
    except FileNotFoundError:
        return MemoryLedger()
    ledger.entries[:] = [
        entry for entry in ledger.entries if int(entry.key.rsplit("/", 4)[1]) <= last_committed
    ]
    if not ledger.entries:
        ledger.noise_multipliers.clear()
    return ledger
