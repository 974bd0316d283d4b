"""Messages to nodes and their replies, over a Flower grid that may fail now and then.

Knows which node owes an answer to which message: a reply counts only for the node that was
asked, an answer that comes after its round is pulled, dropped and counted, and a node that still
owes one is busy. Nothing here waits longer than it is told.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedge.clock import clock_of

log = logging.getLogger(__name__)

T = TypeVar("T")
MESSAGES_PER_CALL = 64
"""Bounds the memory of one push or pull: that many replies are held at once."""
LATE_POLL_INTERVAL_S = 1.0
RETRY_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Sent:
    """A message that a node owes an answer to until it expires (monotonic seconds)."""

    node: int
    message_type: str
    expires_at: float


class Exchange:
    """What is outstanding between this run and its nodes.

    Args:
        grid: the way to the nodes.
        poll_interval_s: pause between two looks for replies.
        keeps_late: whether updates that missed their round are yielded in a later one; else
            they are dropped.

    Attributes:
        refused: messages and replies of the current batch that came to nothing, by reason:
            ``not-sent``, ``wrong-node``.
        last_error: the last transport error, as text; empty while all goes well.
    """

    def __init__(self, grid: Grid, poll_interval_s: float, *, keeps_late: bool = False) -> None:
        self.refused: Counter[str] = Counter()
        self.last_error = ""
        self._grid = grid
        self._clock = clock_of(grid)
        self._poll_interval_s = poll_interval_s
        self._outstanding: dict[str, Sent] = {}
        self._batch: list[str] = []
        self._num_late = 0
        self._late: deque[Message] | None = deque() if keeps_late else None
        self._late_poll_at = 0.0
        self._yields_late = False

    @property
    def busy(self) -> frozenset[int]:
        """Nodes that have not answered an earlier message."""
        return frozenset(sent.node for sent in self._outstanding.values())

    @property
    def waiting(self) -> frozenset[int]:
        """Nodes whose late update waits for the next round."""
        return frozenset(message.metadata.src_node_id for message in self._late or ())

    def connected(self) -> list[int]:
        """Return the connected nodes, sorted; none while the SuperLink cannot be reached."""
        return self._attempt(lambda: sorted(self._grid.get_node_ids()), [])

    def send(self, messages: Iterable[Message], ends_at: float) -> list[int]:
        """Send a new batch, which closes the last one, and return the nodes it was sent to.

        Args:
            messages: one a node; a node is busy until it answers or the time to live is over.
            ends_at: monotonic seconds when trying again ends.
        """
        self.refused.clear()
        self._batch = []
        asked = list(messages)
        asks_for_updates = any(_asks_for_update(message) for message in asked)
        if asks_for_updates:
            self._drop_late_of({message.metadata.dst_node_id for message in asked})
        self._yields_late = asks_for_updates  # an evaluation has no use for updates
        return self.send_more(asked, ends_at)

    def send_more(self, messages: Iterable[Message], ends_at: float) -> list[int]:
        """Add messages to the open batch and return the nodes they were sent to."""
        nodes: list[int] = []
        for chunk in _chunks(list(messages)):
            ids = self._push(chunk, ends_at)
            for message, message_id in zip(chunk, ids, strict=True):
                meta = message.metadata
                if message_id is None:
                    self.refused["not-sent"] += 1
                    continue
                expires_at = self._clock.monotonic() + meta.ttl
                sent = Sent(meta.dst_node_id, meta.message_type, expires_at)
                self._outstanding[message_id] = sent
                self._batch.append(message_id)
                nodes.append(meta.dst_node_id)
        return nodes

    def replies(self, ends_at: float) -> Generator[Message]:
        """Yield the batch's replies as they come, until all have come or the deadline has.

        Late updates of earlier batches come in between where they are kept and the batch asks
        for updates.
        """
        ready: deque[tuple[Sent, Message]] = deque()
        try:
            while True:
                while self._late and self._yields_late:
                    yield self._late.popleft()
                for chunk in _chunks(self._open_batch()):
                    ready.extend(self._pull(chunk))
                    while ready:
                        sent, message = ready.popleft()
                        if self._is_from(sent, message):
                            yield message
                remaining = ends_at - self._clock.monotonic()
                if remaining <= 0 or not self._open_batch():
                    return
                self.collect_late()
                self._clock.sleep(max(0.0, min(self._poll_interval_s, remaining)))
        finally:
            # Pulled together with the reply that filled the round, and not wanted any more.
            self._note_late(ready)
            self._batch = []  # what it still owes is late from now on

    def collect_late(self) -> None:
        """Pull and count answers to earlier batches; does so once a second at most."""
        now = self._clock.monotonic()
        if now < self._late_poll_at:
            return
        self._late_poll_at = now + LATE_POLL_INTERVAL_S
        batch = set(self._batch)
        for chunk in _chunks([key for key in self._outstanding if key not in batch]):
            if len(self._late or ()) >= MESSAGES_PER_CALL:
                break  # the next round takes these first: memory holds one call's worth
            self._note_late(self._pull(chunk))
        for key, sent in list(self._outstanding.items()):
            if now >= sent.expires_at and key not in batch:
                del self._outstanding[key]

    def take_num_late(self) -> int:
        """Return how many updates came late since the last call."""
        num_late, self._num_late = self._num_late, 0
        return num_late

    def _drop_late_of(self, nodes: Set[int]) -> None:
        """Forget the late updates of nodes that are asked anew: one counts, the fresh one."""
        if self._late:
            kept = [m for m in self._late if m.metadata.src_node_id not in nodes]
            self._late = deque(kept)

    def _note_late(self, answers: Iterable[tuple[Sent, Message]]) -> None:
        late = [
            message
            for sent, message in answers
            if _is_update(sent, message) and self._is_from(sent, message)
        ]
        self._num_late += len(late)
        if self._late is not None:
            self._late.extend(late)

    def _open_batch(self) -> list[str]:
        return [message_id for message_id in self._batch if message_id in self._outstanding]

    def _push(self, messages: list[Message], ends_at: float) -> list[str | None]:
        """Return one id a message, None where the SuperLink did not take it."""
        while True:
            # A message taken twice is one message: the SuperLink knows it by its content's hash.
            ids = self._attempt(partial(_push, self._grid, messages), None)
            if ids is not None and len(ids) == len(messages):
                return ids
            if ids is not None:
                taken = set(ids)
                return [key if (key := m.metadata.message_id) in taken else None for m in messages]
            if self._clock.monotonic() >= ends_at:
                return [None] * len(messages)
            self._clock.sleep(RETRY_INTERVAL_S)

    def _pull(self, message_ids: list[str]) -> list[tuple[Sent, Message]]:
        """Return the replies that have come, each with what it answers; they owe no more."""
        if not message_ids:
            return []
        nothing: list[Message] = []
        found = []
        for message in self._attempt(partial(_pull, self._grid, message_ids), nothing):
            sent = self._outstanding.pop(message.metadata.reply_to_message_id, None)
            if sent is not None:
                found.append((sent, message))
        return found

    def _is_from(self, sent: Sent, message: Message) -> bool:
        """Tell whether the node that was asked has answered; SuperLink errors speak for it."""
        if message.has_error() or message.metadata.src_node_id == sent.node:
            return True
        self.refused["wrong-node"] += 1
        log.warning(
            "node %d answered a message that was sent to node %d; the reply is dropped",
            message.metadata.src_node_id,
            sent.node,
        )
        return False

    def _attempt(self, call: Callable[[], T], otherwise: T) -> T:
        """Return what the grid says; a failure is logged once and the caller tries again."""
        try:
            result = call()
        except Exception as error:  # boundary: whatever transport lies under Flower's grid
            if not self.last_error:
                log.warning("the SuperLink cannot be reached, trying again: %r", error)
            self.last_error = f"{type(error).__name__}: {error}"
            return otherwise
        if self.last_error:
            log.info("the SuperLink can be reached again")
            self.last_error = ""
        return result


def _push(grid: Grid, messages: list[Message]) -> list[str | None] | None:
    return list(grid.push_messages(messages))


def _pull(grid: Grid, message_ids: list[str]) -> list[Message]:
    return list(grid.pull_messages(message_ids))


def _asks_for_update(message: Message) -> bool:
    return message.metadata.message_type == MessageType.TRAIN


def _is_update(sent: Sent, message: Message) -> bool:
    return sent.message_type == MessageType.TRAIN and not message.has_error()


def _chunks(items: Sequence[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), MESSAGES_PER_CALL):
        yield list(items[start : start + MESSAGES_PER_CALL])
