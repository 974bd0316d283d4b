import pytest

from edge_client.opened_later import RETRY_S, OpenedLater
from fedge.closing import Closing
from fedge.errors import StoreError


class Store(Closing):
    closed = False

    def count(self) -> int:
        return 3

    def close(self) -> None:
        self.closed = True


class Disk:
    """A disk that is full or not, and a clock."""

    def __init__(self) -> None:
        self.full = True
        self.now = 0.0
        self.attempts = 0
        self.store = Store()

    def open(self) -> Store:
        self.attempts += 1
        if self.full:
            raise StoreError("disk full")
        return self.store

    def clock(self) -> float:
        return self.now


def test_every_use_says_why_it_is_not_open_and_it_opens_once_it_can() -> None:
    disk = Disk()
    store = OpenedLater(disk.open, disk.clock)
    for _ in range(3):
        with pytest.raises(StoreError, match="disk full"):
            store.count()
    assert disk.attempts == 1
    disk.full, disk.now = False, RETRY_S
    assert store.count() == 3
    assert store.count() == 3
    assert disk.attempts == 2
    store.close()
    assert disk.store.closed


def test_what_never_opened_needs_no_closing() -> None:
    with OpenedLater(Disk().open):
        pass
