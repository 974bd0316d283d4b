from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.codecs.bits import pack, packed_bytes, unpack
from fedge.errors import UpdateRejected


@given(st.integers(0, 12), st.integers(1, 70), st.randoms(use_true_random=False))
def test_packed_numbers_come_back(width: int, count: int, random: Random) -> None:
    numbers = [random.randrange(2**width) for _ in range(count)]
    packed = pack(np.array(numbers, np.int64), width)
    assert len(packed) == packed_bytes(count, width)
    assert unpack(memoryview(packed), count, width, np.int64).tolist() == numbers


def test_a_bit_behind_the_last_number_is_refused() -> None:
    packed = bytearray(pack(np.array([1, 0, 1], np.uint8), 1))
    packed[-1] |= 1
    with pytest.raises(UpdateRejected) as caught:
        unpack(memoryview(packed), 3, 1, np.uint8)
    assert caught.value.reason == "payload"
