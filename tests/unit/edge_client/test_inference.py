import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_client.inference import (
    Engine,
    InvalidInput,
    Prediction,
    Serving,
    Version,
    _Turns,
    is_finite,
)
from fedge.errors import ModelError
from tests.unit.edge_client.engines import TEMPLATE, make_engine, make_inputs


def test_importing_inference_brings_neither_torch_nor_flower() -> None:
    code = (
        "import edge_client.inference, sys;"
        "found = [m for m in ('torch', 'flwr', 'jax', 'sklearn') if m in sys.modules];"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (np.zeros(63, np.float32), r"expected shape \[64\] or \['B', 64\], got \[63\]"),
        (np.zeros((2, 8, 8), np.float32), "got \\[2, 8, 8\\]"),
        (np.zeros((), np.float32), "got \\[\\]"),
        (np.zeros(64, np.float64), "expected float32, got float64"),
        (np.zeros(64, np.int64), "expected float32, got int64"),
        (np.full(64, np.nan, np.float32), "finite"),
        (np.full((3, 64), -np.inf, np.float32), "finite"),
        ([0.0] * 64, "expected a numpy array, got list"),
    ],
)
def test_a_wrong_input_is_refused_with_what_was_expected(inputs: Any, text: str) -> None:
    serving = Serving(make_engine(1))
    with pytest.raises(InvalidInput, match=text):
        serving.predict(inputs)
    assert (serving.num_predictions, serving.num_failures) == (0, 1)
    assert serving.predict(np.zeros(64, np.float32)).version.round == 1
    assert (serving.num_predictions, serving.num_failures) == (1, 1)


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
        elements=st.floats(width=32),
    )
)
def test_finite_is_what_numpy_calls_finite(values: np.ndarray) -> None:
    assert is_finite(values) == bool(np.isfinite(values).all())


@pytest.mark.parametrize("place", [0, 5_000, 19_999])
def test_one_value_of_a_large_input_is_found(place: int) -> None:
    values = np.full(20_000, 3e38, np.float32)
    assert is_finite(values)
    values[place] = np.nan
    assert not is_finite(values)
    assert not is_finite(values[::-1][::2]) or place % 2 == 0


def test_a_single_request_takes_its_turn_between_the_parts_of_a_long_batch() -> None:
    engine = make_engine(1)
    runner, order = engine._runner, []
    run_part, run_one = runner.run_part, runner.run_one
    asking = threading.Thread(target=lambda: engine.predict(make_inputs(1)[0]))

    def note_part(part: np.ndarray) -> np.ndarray:
        order.append("part")
        if len(order) == 2:
            asking.start()
            give_up = time.monotonic() + 30
            while not engine._turns._waiting:
                assert time.monotonic() < give_up
                time.sleep(0.001)
        return run_part(part)

    def note_one(example: np.ndarray) -> np.ndarray:
        order.append("single")
        return run_one(example)

    runner.run_part, runner.run_one = note_part, note_one  # type: ignore[method-assign]
    engine.predict(make_inputs(4 * 32))
    asking.join(30)
    assert order == ["part", "part", "single", "part", "part"]


def test_turns_are_taken_by_one_at_a_time_and_none_is_forgotten() -> None:
    turns, inside, most, taken = _Turns(), 0, 0, []

    def work() -> None:
        nonlocal inside, most
        for _ in range(2000):
            turns.take()
            inside += 1
            most = max(most, inside)
            taken.append(inside)
            inside -= 1
            turns.leave()

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet everywhere
    try:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    finally:
        sys.setswitchinterval(interval_s)
    assert not any(thread.is_alive() for thread in threads)
    assert (most, len(taken)) == (1, 12_000)
    turns.take()  # it is free again
    turns.leave()


def test_counts_are_right_across_threads() -> None:
    serving = Serving(make_engine(1))

    def ask(number: int) -> None:
        for turn in range(200):
            if (number + turn) % 4:
                serving.predict(make_inputs(1)[0])
            else:
                with pytest.raises(InvalidInput):
                    serving.predict(np.zeros(3, np.float32))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert (serving.num_predictions, serving.num_failures) == (1200, 400)


def test_an_empty_batch_has_an_empty_answer() -> None:
    assert make_engine(1).predict(np.zeros((0, 64), np.float32)).shape == (0, 10)


def test_a_prediction_names_the_version_and_its_latency() -> None:
    engine = make_engine(7)
    prediction = Serving(engine).predict(make_inputs(1)[0])
    assert prediction.version == engine.version
    assert prediction.output.shape == (10,)
    assert 0 < prediction.latency_us < 1e6


def test_without_a_model_the_error_says_what_is_awaited() -> None:
    serving = Serving()
    with pytest.raises(ModelError, match="no model yet"):
        serving.predict(make_inputs(1))
    assert serving.num_failures == 1
    serving.swap(make_engine(2))
    assert serving.predict(make_inputs(1)).version.round == 2


def test_an_engine_refuses_bytes_that_are_no_model() -> None:
    with pytest.raises(ModelError):
        Engine(b"nothing", Version(0, ""), 1)
    assert Engine(TEMPLATE, Version(0, ""), 1).input_shape == (64,)


def test_a_hundred_swaps_under_load_lose_and_mix_nothing() -> None:
    num_versions, num_swaps, num_clients = 5, 100, 4
    engines = [make_engine(seed) for seed in range(num_versions)]
    inputs = make_inputs(40)  # longer than a batch signature: several invocations a request
    expected = [engine.predict(inputs) for engine in engines]
    serving = Serving(engines[0])
    done = threading.Event()

    def client(number: int) -> list[tuple[int | slice, Prediction]]:
        seen: list[tuple[int | slice, Prediction]] = []
        while not done.is_set() or len(seen) < 20:
            part: int | slice = slice(None) if len(seen) % 2 else (number + len(seen)) % 40
            seen.append((part, serving.predict(inputs[part])))
        return seen

    with ThreadPoolExecutor(num_clients) as pool:
        running = [pool.submit(client, number) for number in range(num_clients)]
        for swap in range(num_swaps):
            before = serving.num_predictions
            # A fresh engine each time, as after a download; made while the old one serves.
            serving.swap(make_engine(swap % num_versions))
            while serving.num_predictions < before + 3 and not any(f.done() for f in running):
                threading.Event().wait(0.0005)
        done.set()
        answers = [answer for future in running for answer in future.result(timeout=60)]

    mixed = [
        prediction.version
        for part, prediction in answers
        if not np.allclose(
            prediction.output, expected[prediction.version.round][part], rtol=1e-5, atol=1e-6
        )
    ]
    assert mixed == []
    assert serving.num_failures == 0
    assert serving.num_predictions == len(answers) >= 3 * num_swaps
    assert {prediction.version.round for _, prediction in answers} == set(range(num_versions))


def test_versions_differ_enough_for_a_mix_to_be_seen() -> None:
    inputs = make_inputs(1)[0]
    first, second = (make_engine(seed).predict(inputs) for seed in (0, 1))
    assert not np.allclose(first, second, rtol=1e-2, atol=1e-2)
