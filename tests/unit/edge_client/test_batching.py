import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest

from edge_client.batching import MicroBatcher, preparation
from edge_client.inference import Engine, InvalidInput, Serving, Version
from edge_client.settings import InferenceConfig
from fedge.errors import ModelError
from tests.unit.edge_client.engines import make_engine, make_inputs

POISON = -1.0


class GatedEngine:
    """Stands in for an engine of ``[1]``: doubles, notes each call's size, waits to be let go."""

    def __init__(self) -> None:
        self.version = Version(1, "digest")
        self.input_shape = (1,)
        self.calls: list[int] = []
        self.may_answer = threading.Event()
        self.failure: Exception = ModelError("the TFLite runtime failed")

    def check(self, inputs: Any) -> None:
        if not np.isfinite(inputs).all():
            raise InvalidInput("input: expected finite numbers")

    def predict(self, inputs: Any) -> Any:
        self.calls.append(1 if inputs.shape == (1,) else len(inputs))
        assert self.may_answer.wait(30)
        if (inputs == POISON).any():
            raise self.failure
        return 2 * inputs


def one(value: float) -> Any:
    return np.array([value], np.float32)


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


@contextmanager
def busy(
    engine: GatedEngine, batcher: MicroBatcher, values: list[float]
) -> Iterator[list[Future[Any]]]:
    """Keep the engine busy with one request while others line up behind it in order."""
    with ThreadPoolExecutor(len(values) + 1) as pool:
        first = pool.submit(batcher.predict, one(0))
        wait_until(lambda: engine.calls == [1])
        futures = []
        for number, value in enumerate(values):
            futures.append(pool.submit(batcher.predict, one(value)))
            wait_until(lambda number=number: len(batcher._waiting) == number + 1)  # type: ignore[misc]
        yield futures
        engine.may_answer.set()
        assert first.result(30) == 0


def make_batcher(max_batch: int, max_wait_us: float = 0.0) -> tuple[GatedEngine, MicroBatcher]:
    engine = GatedEngine()
    return engine, MicroBatcher(cast("Engine", engine), max_batch, max_wait_us)


def test_those_who_wait_share_calls_of_the_largest_batch_in_order() -> None:
    engine, batcher = make_batcher(4)
    values = [float(value) for value in range(1, 11)]
    with busy(engine, batcher, values) as futures:
        pass
    assert [future.result(30)[0] for future in futures] == [2 * value for value in values]
    assert engine.calls == [1, 4, 4, 2]


def test_a_batcher_that_was_idle_answers_alone_and_at_once() -> None:
    engine, batcher = make_batcher(8)
    engine.may_answer.set()
    for value in (3.0, 4.0):
        assert batcher.predict(one(value)) == 2 * value
    assert engine.calls == [1, 1]


def test_the_first_waits_for_a_full_batch_and_no_longer() -> None:
    engine, batcher = make_batcher(2, max_wait_us=100_000)
    engine.may_answer.set()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(batcher.predict, [one(1), one(2)]))
    assert [answer[0] for answer in answers] == [2, 4]
    assert engine.calls == [2]
    assert batcher.predict(one(3)) == 6  # nobody came
    assert engine.calls == [2, 1]


def test_a_bad_input_does_not_harm_its_neighbours() -> None:
    engine, batcher = make_batcher(8)
    with busy(engine, batcher, [1.0, 2.0]) as futures, pytest.raises(InvalidInput, match="finite"):
        batcher.predict(one(np.nan))
    assert [future.result(30)[0] for future in futures] == [2, 4]
    assert engine.calls == [1, 2]


def test_what_fails_in_a_batch_fails_alone() -> None:
    engine, batcher = make_batcher(8)
    with busy(engine, batcher, [1.0, POISON, 3.0]) as futures:
        pass
    assert [futures[0].result(30)[0], futures[2].result(30)[0]] == [2, 6]
    with pytest.raises(ModelError, match="runtime failed"):
        futures[1].result(30)
    assert batcher.predict(one(5)) == 10


def test_whatever_fails_in_a_batch_lets_nobody_wait_for_ever() -> None:
    engine = GatedEngine()
    engine.failure = MemoryError("no room for the batch")
    batcher = MicroBatcher(cast("Engine", engine), 8, 0)
    with busy(engine, batcher, [1, POISON, 3]) as futures:
        engine.may_answer.set()
    assert [futures[n].result(30) for n in (0, 2)] == [2, 6]
    with pytest.raises(MemoryError):
        futures[1].result(30)
    assert batcher.predict(one(4)) == 8


def test_a_batch_of_the_caller_shares_no_call() -> None:
    engine, batcher = make_batcher(8)
    engine.may_answer.set()
    assert batcher.predict(np.array([[1], [2]], np.float32)).tolist() == [[2], [4]]
    assert engine.calls == [2]


def test_answers_under_load_and_swaps_are_those_of_one_version_given_one_by_one() -> None:
    engines = [make_engine(seed) for seed in range(3)]
    inputs = make_inputs(64)
    expected = [np.stack([engine.predict(example) for example in inputs]) for engine in engines]
    serving = Serving(engines[0], prepare=preparation(InferenceConfig(max_batch=8)))
    done = threading.Event()

    def ask(client: int) -> list[tuple[int, Any]]:
        return [
            (row, serving.predict(inputs[row]))
            for row in np.random.default_rng(client).integers(0, 64, 300)
        ]

    def swap() -> None:
        turn = 0
        while not done.is_set():
            serving.swap(engines[turn % 3])
            turn += 1
            time.sleep(0.001)

    swapping = threading.Thread(target=swap)
    swapping.start()
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for seen in pool.map(ask, range(8)) for answer in seen]
    done.set()
    swapping.join(30)
    assert len(answers) == serving.num_predictions == 2400
    for row, prediction in answers:
        wanted = expected[prediction.version.round][row]
        np.testing.assert_allclose(prediction.output, wanted, rtol=1e-6, atol=1e-6)


def test_it_is_off_unless_configured() -> None:
    assert preparation(InferenceConfig()) is None
    prepare = preparation(InferenceConfig(max_batch=8))
    assert prepare is not None
    assert prepare(make_engine(1)).input_shape == (64,)
