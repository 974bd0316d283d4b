"""Refinements in the background: done, under way, hanging and broken."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from fedge.errors import RefineError
from fedge.params import Layout, Vector
from server import refinement_modes
from server.refinement_modes import Overlapped
from server.settings import RefineConfig
from server.trainer.spec import Refinement

LAYOUT = Layout(("w",), ((2,),))
START = np.full(2, 1, np.float32)
REMOTE = RefineConfig(trainer="127.0.0.1:9", mode="overlapped", deadline_s=1.0)


class Doing:
    """A refiner in whose thread a test can wait and raise."""

    def __init__(self, action: Callable[[], object] = lambda: None) -> None:
        self.action = action
        self.threads: list[threading.Thread] = []

    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        self.threads.append(threading.current_thread())
        self.action()
        return Refinement(weights + 1, 1, 0.0, 0.0, 0.0)

    def close(self) -> None:
        """Hold nothing."""

    def join(self) -> None:
        for each in self.threads:
            each.join(10)


def test_a_refinement_that_is_still_under_way_is_waited_for_in_later_rounds() -> None:
    held, running = threading.Event(), threading.Event()

    def action() -> None:
        running.set()
        held.wait(20)

    refiner = Doing(action)
    mode = Overlapped(REMOTE, LAYOUT, refiner)
    assert mode.begin(1, START)
    assert running.wait(20)
    assert mode.take(2, START) is None
    assert not mode.begin(2, START)
    held.set()
    refiner.join()
    found = mode.take(3, START + 5)
    assert found is not None
    assert found.staleness == 2
    np.testing.assert_array_equal(found.weights, START + 6)
    assert refiner.threads[0] is not threading.main_thread()
    assert refiner.threads[0].daemon
    assert not mode.serves(3)


def test_a_refiner_that_hangs_past_its_deadline_fails_and_another_can_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = threading.Event()
    mode = Overlapped(REMOTE, LAYOUT, Doing(lambda: held.wait(20)))
    mode.begin(1, START)
    assert mode.take(2, START) is None
    monkeypatch.setattr(refinement_modes, "GRACE_S", -REMOTE.deadline_s)
    with pytest.raises(RefineError, match="of round 1 hangs: its deadline of 1 s"):
        mode.take(2, START)
    assert mode.begin(2, START)
    held.set()


def test_a_bug_in_the_thread_is_a_refine_error() -> None:
    def bug() -> None:
        raise KeyError("x")

    refiner = Doing(bug)
    mode = Overlapped(REMOTE, LAYOUT, refiner)
    mode.begin(1, START)
    refiner.join()
    with pytest.raises(RefineError, match="KeyError: 'x'"):
        mode.take(2, START)


def test_what_was_dropped_is_not_served() -> None:
    mode = Overlapped(REMOTE, LAYOUT, Doing())
    mode.begin(1, START)
    assert mode.serves(2)
    mode.drop()
    assert not mode.serves(2)


def test_a_refinement_starts_from_a_copy() -> None:
    weights = START.copy()
    refiner = Doing()
    mode = Overlapped(RefineConfig(trainer="in-process"), LAYOUT, refiner)
    mode.begin(1, weights)
    weights += 3
    found = mode.take(2, np.zeros(2, np.float32))
    assert found is not None
    np.testing.assert_array_equal(found.weights, 1)
    assert refiner.threads == [threading.main_thread()]
