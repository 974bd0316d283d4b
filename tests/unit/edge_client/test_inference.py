import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from edge_client.inference import Engine, InvalidInput, Prediction, Serving, Version
from fedge.errors import ModelError
from fedge.tasks.digits import Digits
from fedge.weights import write_vector
from tests.unit.edge_client.engines import (
    LAYOUT,
    TEMPLATE,
    make_engine,
    make_inputs,
    make_weights,
)


@pytest.mark.parametrize("size", [1, 5, 32, 50])
def test_answers_equal_those_of_torch(size: int) -> None:
    model = Digits().build_model()
    write_vector(model, LAYOUT, make_weights(3))
    inputs = make_inputs(size)
    with torch.inference_mode():
        expected = model(torch.from_numpy(inputs)).numpy()
    engine = make_engine(3)
    scale = np.abs(expected).max()
    assert np.abs(engine.predict(inputs) - expected).max() / scale < 1e-5
    one_by_one = np.stack([engine.predict(example) for example in inputs])
    assert np.abs(one_by_one - expected).max() / scale < 1e-5


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
    ],
)
def test_a_wrong_input_is_refused_with_what_was_expected(inputs: np.ndarray, text: str) -> None:
    serving = Serving(make_engine(1))
    with pytest.raises(InvalidInput, match=text):
        serving.predict(inputs)
    assert (serving.num_predictions, serving.num_failures) == (0, 1)
    assert serving.predict(np.zeros(64, np.float32)).version.round == 1
    assert (serving.num_predictions, serving.num_failures) == (1, 1)


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
