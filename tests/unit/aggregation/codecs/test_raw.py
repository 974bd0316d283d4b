from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregation.codecs import RawCodec
from fedge.errors import UpdateRejected
from fedge.params import Layout
from tests.unit.aggregation.helpers import LAYOUT

ANY_BITS = hnp.arrays(np.uint32, LAYOUT.size)


@given(ANY_BITS)
def test_raw_loses_no_bit(bits: npt.NDArray[np.uint32]) -> None:
    delta = bits.view(np.float32)
    codec = RawCodec()
    encoded, state = codec.encode(delta, codec.init(LAYOUT), np.random.default_rng(0))
    assert (encoded.codec, encoded.bits, encoded.distortion, state) == ("raw", 32.0, 0.0, {})
    assert len(encoded.payload) == LAYOUT.size_bytes
    decoded = codec.decode(encoded.payload, LAYOUT)
    assert decoded.tobytes() == delta.tobytes()
    assert decoded.dtype == np.float32


@given(st.binary(max_size=60))
def test_any_other_length_is_refused(payload: bytes) -> None:
    if len(payload) == LAYOUT.size_bytes:
        assert RawCodec().decode(payload, LAYOUT).shape == (LAYOUT.size,)
        return
    with pytest.raises(UpdateRejected) as caught:
        RawCodec().decode(payload, LAYOUT)
    assert (caught.value.reason, caught.value.got) == ("bytes", len(payload))


def test_a_huge_layout_takes_no_memory_for_a_short_payload() -> None:
    huge = Layout(("weight",), ((2**40,),))
    with pytest.raises(UpdateRejected):
        RawCodec().decode(b"1234", huge)


def test_a_device_that_encodes_imports_no_torch_and_no_flower() -> None:
    code = "import aggregation.codecs, sys; print({'torch', 'flwr'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "set()"
