"""What simulated clients remember from round to round, so that a resumed run goes on with it."""

from __future__ import annotations

from pathlib import Path

from aggregation.contracts import Memory
from edge_client.replies import MemoryReplyStore
from edge_client.stored_reply import encode_stored_reply
from fedge.durable import write_atomically
from fedge.messages import EncodedUpdate, RoundKey

_KEPT_ROUNDS = 2
"""The open round may have to be forgotten; then the one before it counts."""


class ClientReplies:
    """The last reply of one client; on disk only where the next round needs something of it.

    Rounds that were not committed are forgotten: they are done again with the same draws.

    Args:
        folder: made when it is first needed.
        client: whose replies these are.
        last_committed: last round of the run that is not done again.
    """

    def __init__(self, folder: Path, client: int, *, last_committed: int) -> None:
        self._folder = folder
        self._client = client
        self._kept: list[Path] = []  # newest first
        for round, path in self._files():
            if round > last_committed:
                path.unlink()
            else:
                self._kept.append(path)
        self._last = MemoryReplyStore(self._kept[0].read_bytes() if self._kept else b"")

    def get(self, key: RoundKey) -> EncodedUpdate | None:
        """Return the last reply if it answers this round."""
        return self._last.get(key)

    def state(self, run_name: str) -> Memory:
        """Return what was put with the last reply."""
        return self._last.state(run_name)

    def put(self, key: RoundKey, update: EncodedUpdate, state: Memory) -> None:
        """Keep a reply and a memory in place of the last ones."""
        self._last.put(key, update, state)
        if not state and not self._kept:
            return  # nothing to remember, and nothing on disk that would come back instead
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._client}-{key.round}.reply"
        write_atomically(path, encode_stored_reply(key, update, state))
        self._kept = [path, *(old for old in self._kept if old != path)]
        for old in self._kept[_KEPT_ROUNDS:]:
            old.unlink()
        del self._kept[_KEPT_ROUNDS:]

    def _files(self) -> list[tuple[int, Path]]:
        """Return (round, path), newest first."""
        paths = self._folder.glob(f"{self._client}-*.reply")
        return sorted(((int(path.stem.split("-")[1]), path) for path in paths), reverse=True)
