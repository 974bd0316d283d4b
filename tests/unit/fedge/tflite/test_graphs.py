import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ModelError
from fedge.tflite.graphs import Cut, cut_of
from fedge.tflite.runner import Runner, batch_sizes_of
from tests.unit.edge_client.engines import TEMPLATE, make_inputs


def _cut() -> Cut:
    found = cut_of(TEMPLATE)
    assert found is not None
    return found


def _shortened() -> bytes:
    content = bytearray(TEMPLATE)
    _cut().shorten(content)
    return bytes(content)


def test_the_first_graph_answers_as_it_did_among_the_others() -> None:
    inputs = make_inputs(40)
    alone = Runner(_shortened())
    assert alone.batch_sizes == (1,)
    expected = np.stack([Runner(TEMPLATE).run_one(each) for each in inputs])
    np.testing.assert_array_equal(alone.run(inputs), expected)


def test_nothing_but_two_lengths_changes_and_both_come_back() -> None:
    shortened = _shortened()
    assert sum(one != other for one, other in zip(TEMPLATE, shortened, strict=True)) == 2
    assert _cut().restore(shortened) == TEMPLATE
    assert shortened == _shortened()  # restoring left it alone


def test_a_model_of_one_graph_is_not_cut() -> None:
    assert cut_of(_shortened()) is None


@pytest.mark.parametrize("which", ["graphs", "signatures"])
def test_a_model_with_graphs_that_no_signature_names_is_not_cut(which: str) -> None:
    offset, length = getattr(_cut(), which)
    content = bytearray(TEMPLATE)
    struct.pack_into("<I", content, offset, length - 1)
    assert cut_of(bytes(content)) is None


def test_the_sizes_of_batches_are_known_without_loading() -> None:
    assert batch_sizes_of(TEMPLATE) == (32, 8)
    assert batch_sizes_of(_shortened()) == ()


@given(st.integers(0, 200))
def test_what_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(ModelError, match="not a TFLite model"):
        cut_of(TEMPLATE[: min(length, struct.unpack_from("<I", TEMPLATE)[0])])


@given(st.binary(max_size=300))
def test_bytes_that_are_no_model_raise_nothing_but_our_error(content: bytes) -> None:
    with suppress(ModelError):
        assert cut_of(content) is None or len(content) > 8
