import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Any

import numpy as np
import pytest

from edge_client import inference
from edge_client.batching import preparation
from edge_client.engine_maker import EngineMaker
from edge_client.inference import Engine, Serving, Version
from edge_client.settings import InferenceConfig
from fedge.errors import ModelError
from fedge.tflite.graphs import cut_of
from fedge.tflite.runner import Runner
from tests.unit.edge_client.engines import (
    LAYOUT,
    PATCHER,
    TEMPLATE,
    answer,
    make_inputs,
    make_weights,
)

WEIGHTS = make_weights(3)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the batch sizes of each model that is loaded from now on."""
    sizes: list[tuple[int, ...]] = []

    class Noted(Runner):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            sizes.append(self.batch_sizes)

    monkeypatch.setattr(inference, "Runner", Noted)
    return sizes


def _engine() -> Engine:
    return EngineMaker(PATCHER).engine(LAYOUT, WEIGHTS, Version(1, "digest"))


def test_graphs_for_batches_are_loaded_once_when_a_batch_asks_for_them(
    loaded: list[tuple[int, ...]],
) -> None:
    engine = _engine()
    engine.predict(make_inputs(1)[0])
    engine.predict(make_inputs(7))
    assert loaded == [(1,)]
    assert not engine.has_taken_batches
    engine.predict(make_inputs(8))
    engine.predict(make_inputs(40))
    assert loaded == [(1,), (32, 8, 1)]
    assert engine.has_taken_batches


def test_where_batches_are_asked_for_the_next_version_has_their_graphs_before_it_serves(
    loaded: list[tuple[int, ...]],
) -> None:
    serving = Serving(_engine())
    serving.swap(_engine())
    assert loaded == [(1,), (1,)]
    serving.predict(make_inputs(8))
    engine = _engine()
    serving.swap(engine)
    assert engine.has_taken_batches


def test_micro_batching_has_the_graphs_for_batches_from_the_start() -> None:
    serving, engine = Serving(prepare=preparation(InferenceConfig(max_batch=8))), _engine()
    serving.swap(engine)
    assert engine.has_taken_batches


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 31, 32, 45])
def test_batches_of_every_size_get_the_answers_of_the_weights(size: int) -> None:
    inputs = make_inputs(size)
    outputs = _engine().predict(inputs)
    np.testing.assert_allclose(outputs, answer(WEIGHTS, inputs), rtol=1e-5, atol=1e-5)


def test_batches_that_come_at_once_load_their_graphs_once(loaded: list[tuple[int, ...]]) -> None:
    engine, together = _engine(), threading.Barrier(6)

    def ask(number: int) -> bool:
        inputs = make_inputs(16, seed=number)
        together.wait(30)
        return np.allclose(engine.predict(inputs), answer(WEIGHTS, inputs), atol=1e-5)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(6)))
    assert len(loaded) == 2


@pytest.mark.parametrize("error", [ModelError("the runtime refuses the model"), MemoryError()])
def test_without_graphs_for_batches_examples_are_answered_one_by_one(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = _engine()

    def refuse(*_: Any) -> Runner:
        raise error

    monkeypatch.setattr(inference, "Runner", refuse)
    for _ in range(3):
        inputs = make_inputs(9)
        np.testing.assert_allclose(engine.predict(inputs), answer(WEIGHTS, inputs), atol=1e-5)
    assert caplog.text.count("one example at a time") == 1
    assert not engine.has_taken_batches


def test_a_template_with_graphs_that_no_signature_names_is_taken_whole(
    loaded: list[tuple[int, ...]],
) -> None:
    cut = cut_of(TEMPLATE)
    assert cut is not None
    content = bytearray(TEMPLATE)
    struct.pack_into("<I", content, cut.signatures[0], cut.signatures[1] - 1)
    patcher = copy(PATCHER)
    patcher.template = bytes(content)
    engine = EngineMaker(patcher).engine(LAYOUT, WEIGHTS, Version(1, "digest"))
    assert len(loaded) == 1
    assert loaded[0][0] > 1
    np.testing.assert_allclose(
        engine.predict(make_inputs(33)), answer(WEIGHTS, make_inputs(33)), atol=1e-5
    )
