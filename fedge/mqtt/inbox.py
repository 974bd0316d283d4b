"""Messages between the network's thread and the one that works on them."""

from __future__ import annotations

import threading
from collections import deque

from fedge.mqtt.messages import Incoming

MAX_MESSAGES = 65_535  # more, no broker may have under way to one client
MAX_BYTES = 32 * 2**20
OVERHEAD_BYTES = 512  # of a message here, roughly


class Inbox:
    """Messages that wait, bounded in number and bytes.

    A receive maximum alone does not bound them: mosquitto 2.0.11 sends more to a client that came
    back, and QoS 0 is not counted at all. What finds no room stays unacknowledged, so the broker
    sends it again on the next connection; `overflowed` says that there should be one.
    """

    def __init__(self, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: deque[Incoming] = deque()
        self._num_bytes = 0
        self._overflowed = False
        self._closed = False
        self._wanted = 1
        self._changed = threading.Condition()

    def offer(self, message: Incoming) -> bool:
        """Take a message in, without waiting; return whether there was room."""
        size = len(message.payload) + OVERHEAD_BYTES
        with self._changed:
            full = len(self._waiting) >= self._max_messages
            if full or self._num_bytes + size > self._max_bytes:
                self._overflowed = self._overflowed or message.qos > 0
                return False
            self._waiting.append(message)
            self._num_bytes += size
            if len(self._waiting) == 1 or len(self._waiting) >= self._wanted:
                self._changed.notify()
            return True

    def take(self, most: int, gather_s: float = 0.0) -> list[Incoming]:
        """Wait for messages and return the oldest; none once the inbox is closed.

        Args:
            most: how many at most.
            gather_s: wait so long for more, after the first, or until there are so many.
        """
        with self._changed:
            self._wanted = most
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if gather_s:
                self._changed.wait_for(lambda: self._closed or len(self._waiting) >= most, gather_s)
            if self._closed:
                return []
            taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._num_bytes -= sum(len(message.payload) + OVERHEAD_BYTES for message in taken)
            return taken

    def put_back(self, messages: list[Incoming]) -> None:
        """Put messages back to the front."""
        with self._changed:
            self._waiting.extendleft(reversed(messages))
            self._num_bytes += sum(len(message.payload) + OVERHEAD_BYTES for message in messages)

    def clear(self) -> None:
        """Forget what waits: its connection is gone, and the broker sends it again."""
        with self._changed:
            self._waiting.clear()
            self._num_bytes = 0
            self._overflowed = False

    def drained_after_overflow(self) -> bool:
        """Tell once, when nothing waits any more, that messages had found no room."""
        with self._changed:
            if self._waiting or not self._overflowed:
                return False
            self._overflowed = False
            return True

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
