from typing import Any

import numpy as np
import pytest

from aggregation.codecs import make_codec
from edge_client.round_memory import encode_round, recall
from edge_client.worker import Trained
from fedge.messages import WeightsRequest
from fedge.params import Layout
from fedge.settings import Hyperparameters

LAYOUT = Layout(("w",), ((40,),))
SPEC = "topk:0.1+f16"
DELTA = np.linspace(-1, 1, 40, dtype=np.float32)


def ask(codec: str = SPEC, layout: Layout = LAYOUT) -> WeightsRequest:
    weights = np.zeros(layout.size, np.float32)
    return WeightsRequest("run", 1, 5, layout, weights, Hyperparameters(), codec=codec)


def encode(stored: dict[str, Any], codec: str = SPEC) -> tuple[bytes, dict[str, Any]]:
    request = ask(codec)
    encoded, memory = encode_round(
        recall(stored, request),
        make_codec(codec),
        request,
        Trained(DELTA, 1, 0.0),
        np.random.default_rng(0),
    )
    return encoded.payload, memory.to_memory()


def test_what_was_left_out_is_what_the_next_round_begins_with() -> None:
    first, memory = encode({})
    second, _ = encode(memory)
    sent = [make_codec(SPEC).decode(payload, LAYOUT) for payload in (first, second)]
    assert np.count_nonzero(sent[0]) == np.count_nonzero(sent[1]) == 4
    left = DELTA - sent[0]
    np.testing.assert_allclose(memory["codec_state"]["residual"], left, atol=1e-6)
    chosen = np.flatnonzero(sent[1])
    np.testing.assert_allclose(sent[1][chosen], (DELTA + left)[chosen], rtol=1e-3)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"residual": np.ones(39, np.float32)},
        {"residual": np.ones(40, np.float64)},
        {"residual": [1.0] * 40},
        {"other": np.ones(40, np.float32)},
        {"residual": np.ones(40, np.float32), "more": 1},
        "text",
    ],
)
def test_error_feedback_of_another_form_begins_anew_and_is_said(
    state: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stored = {"layout": LAYOUT.digest, "codec": SPEC, "codec_state": state, "control": None}
    payload, memory = encode(stored)
    fresh, fresh_memory = encode({})
    assert payload == fresh
    assert memory["codec_state"]["residual"].tobytes() == (
        fresh_memory["codec_state"]["residual"].tobytes()
    )
    assert "does not fit" in caplog.text


@pytest.mark.parametrize("control", [np.ones(3, np.float32), np.ones((2, 20), np.float32), 5, "c"])
def test_a_control_of_another_form_begins_anew_and_is_said(
    control: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stored = {"layout": LAYOUT.digest, "codec": SPEC, "codec_state": None, "control": control}
    assert recall(stored, ask()).control is None
    assert "does not fit" in caplog.text


def test_a_control_outlives_another_codec_and_not_another_model() -> None:
    control = np.ones(40, np.float32)
    stored = {"layout": LAYOUT.digest, "codec": SPEC, "codec_state": None, "control": control}
    kept = recall(stored, ask("raw")).control
    assert kept is not None
    assert kept.tobytes() == control.tobytes()
    assert recall(stored, ask(layout=Layout(("other",), ((40,),)))).control is None


def test_a_codec_without_error_feedback_leaves_nothing_to_remember() -> None:
    assert encode({}, "int8")[1] == {}
