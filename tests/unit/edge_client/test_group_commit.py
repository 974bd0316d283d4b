import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge_client.group_commit import GroupCommit


class Disk:
    """Commits when it may, and notes what it was given."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def commit(self, items: list[int]) -> list[int]:
        self.groups.append(items)
        self.began.release()
        assert self.may_end.acquire(timeout=30)
        if -1 in items:
            raise ValueError("broken")
        return [10 * item for item in items]


def wait_until_queued(group: GroupCommit[int, int], number: int) -> None:
    """Return once so many items wait for the next commit."""
    deadline = threading.Event()
    for _ in range(6000):
        if len(group._queue) == number:
            return
        deadline.wait(0.005)
    raise AssertionError(f"only {len(group._queue)} of {number} wait")


def test_what_comes_during_a_commit_is_committed_together_in_the_next() -> None:
    disk = Disk()
    group = GroupCommit(disk.commit)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(group.submit, 0)
        assert disk.began.acquire(timeout=30)
        others = [threads.submit(group.submit, number) for number in range(1, 8)]
        wait_until_queued(group, 7)
        disk.may_end.release(2)
        assert first.result(30) == 0
        assert [each.result(30) for each in others] == [10 * number for number in range(1, 8)]
    assert [len(items) for items in disk.groups] == [1, 7]


def test_everyone_of_a_group_hears_of_its_failure_and_nobody_else() -> None:
    disk = Disk()
    group = GroupCommit(disk.commit)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(group.submit, 1)
        assert disk.began.acquire(timeout=30)
        others = [threads.submit(group.submit, number) for number in (-1, 2)]
        wait_until_queued(group, 2)
        disk.may_end.release(3)
        assert first.result(30) == 10
        for each in others:
            with pytest.raises(ValueError, match="broken"):
                each.result(30)
        assert group.submit(3) == 30


def test_one_alone_is_committed_at_once() -> None:
    disk = Disk()
    disk.may_end.release(2)
    group = GroupCommit(disk.commit)
    assert [group.submit(4), group.submit(5)] == [40, 50]
    assert disk.groups == [[4], [5]]
