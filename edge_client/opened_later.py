"""A database that cannot be opened now and may be later: its disk is full, or read-only."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from fedge.closing import Closing
from fedge.errors import StoreError

RETRY_S = 10.0

log = logging.getLogger(__name__)


class OpenedLater(Closing):
    """Passes every use on to what ``open`` returned, and raises its StoreError until it did.

    So a device whose samples cannot be kept goes on predicting. Safe across threads.

    Args:
        open: opens it; tried at once, then on use and at most every `RETRY_S` seconds.
        clock: seconds that never go back.
    """

    def __init__(
        self, open: Callable[[], Closing], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open = open
        self._clock = clock
        self._lock = threading.Lock()
        self._opened: Closing | None = None
        self._problem = ""
        self._tried_at = 0.0
        try:
            self._get()
        except StoreError as error:
            log.error("%s; this device predicts without it and tries again", error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get(), name)

    def close(self) -> None:
        """Close what was opened."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()

    def _get(self) -> Closing:
        with self._lock:
            if self._opened is None:
                if self._problem and self._clock() - self._tried_at < RETRY_S:
                    raise StoreError(self._problem)
                self._tried_at = self._clock()
                try:
                    self._opened = self._open()
                except StoreError as error:
                    self._problem = str(error)
                    raise
            return self._opened
