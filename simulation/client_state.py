"""One simulated client's ledger and memory: read from the store, used in a round, written back."""

from __future__ import annotations

import io
from dataclasses import replace

from aggregation.contracts import Memory
from edge_client.ledger import MemoryLedger
from edge_client.stored_reply import encode_stored_reply, read_memory
from fedge.errors import PrivacyError, StoreError
from fedge.messages import EncodedUpdate, RoundKey
from simulation.state_store import StoredState


class ClientState:
    """What one client carries from round to round; its ledger, and a `ReplyStore` for it.

    The last reply itself stays in memory: only what the next round needs of it is stored.

    Args:
        client: whose state it is, for the error text.
        stored: what `to_stored` returned after the last round; None for a new client.

    Raises:
        StoreError: what is stored is damaged.
    """

    def __init__(self, client: int, stored: StoredState | None = None) -> None:
        self._client = client
        self._is_stored = stored is not None
        stored = stored or StoredState()
        self.ledger = _read_ledger(client, stored.ledger) if stored.ledger else MemoryLedger()
        self._memory_bytes = stored.memory
        self._reply: tuple[str, EncodedUpdate] | None = None

    def get(self, key: RoundKey) -> EncodedUpdate | None:
        """Return the last reply if it answers this round."""
        if self._reply is None or self._reply[0] != str(key):
            return None
        return self._reply[1]

    def state(self, run_name: str) -> Memory:
        """Return what was put with the last reply, if it is of this run."""
        if not self._memory_bytes:
            return {}
        try:
            return read_memory(io.BytesIO(self._memory_bytes), run_name)
        except ValueError as error:
            raise StoreError(
                f"what client {self._client} remembers is damaged: {error}; begin the run anew"
            ) from error

    def put(self, key: RoundKey, update: EncodedUpdate, state: Memory) -> None:
        """Keep a reply and a memory in place of the last ones."""
        self._reply = (str(key), update)
        self._memory_bytes = b""
        if state:
            # The payload is the largest part, and no later round asks for it.
            stub = replace(update, payload=b"")
            self._memory_bytes = encode_stored_reply(key, stub, state)

    def to_stored(self) -> StoredState | None:
        """Return what to store; None for a client that never had anything to remember."""
        ledger = self.ledger.to_json() if self.ledger.entries else ""
        state = StoredState(ledger, self._memory_bytes)
        # What was given up must be overwritten, or the last round's would come back.
        self._is_stored = self._is_stored or state != StoredState()
        return state if self._is_stored else None


def _read_ledger(client: int, ledger: str) -> MemoryLedger:
    try:
        return MemoryLedger.from_json(ledger)
    except PrivacyError as error:
        raise StoreError(
            f"the privacy ledger of client {client} is damaged: {error}; begin the run anew"
        ) from error
