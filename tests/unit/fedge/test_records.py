from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import example, given
from hypothesis import strategies as st

from fedge.errors import UpdateRejected
from fedge.params import Layout
from fedge.records import from_array_record, layout_of_record, to_array_record

LAYOUT = Layout(("weight", "scale", "empty"), ((2, 3), (), (0, 4)))
VECTOR = np.arange(7, dtype=np.float32) - 2.5


def npy(array: npt.NDArray[Any], version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def lying(
    data: bytes,
    shape: tuple[int, ...] = (2, 3),
    dtype: str = "float32",
    stype: str = "numpy.ndarray",
) -> Array:
    """Return a Flower array that declares one thing and carries another."""
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def with_weight(array: Array) -> ArrayRecord:
    record = to_array_record(LAYOUT, VECTOR)
    record["weight"] = array
    return record


def refusal(record: ArrayRecord) -> UpdateRejected:
    with pytest.raises(UpdateRejected) as caught:
        from_array_record(LAYOUT, record)
    return caught.value


def test_a_record_brings_back_the_vector_and_the_layout() -> None:
    record = to_array_record(LAYOUT, VECTOR)
    assert layout_of_record(record) == LAYOUT
    found = from_array_record(LAYOUT, record)
    assert found.tobytes() == VECTOR.tobytes()
    assert found.flags.writeable


def test_flower_reads_our_record_with_its_own_means() -> None:
    arrays = to_array_record(LAYOUT, VECTOR).to_numpy_ndarrays()
    np.testing.assert_array_equal(arrays[0], VECTOR[:6].reshape(2, 3))
    assert arrays[1] == VECTOR[6]


def test_the_order_of_a_records_tensors_does_not_matter() -> None:
    record = to_array_record(LAYOUT, VECTOR)
    turned = ArrayRecord(dict(reversed(list(record.items()))))
    assert from_array_record(LAYOUT, turned).tobytes() == VECTOR.tobytes()


def test_a_tensor_in_fortran_order_is_read_as_numpy_reads_it() -> None:
    weight = np.asfortranarray(VECTOR[:6].reshape(2, 3))
    payload = npy(weight)
    assert b"'fortran_order': True" in payload
    found = from_array_record(LAYOUT, with_weight(lying(payload)))
    assert found.tobytes() == VECTOR.tobytes()


GOOD = npy(VECTOR[:6].reshape(2, 3))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (lying(b""), "bytes"),
        (lying(GOOD[:-1]), "bytes"),
        (lying(GOOD + b"\0"), "bytes"),
        (lying(GOOD[:40]), "bytes"),
        (lying(GOOD[:9]), "bytes"),
        (lying(b"x" + GOOD[1:]), "bytes"),
        (lying(npy(np.zeros((2, 3), np.float32), version=(2, 0))), "bytes"),
        (lying(npy(np.zeros((3, 2), np.float32))), "shape"),
        (lying(npy(np.zeros(6, np.float32))), "shape"),
        (lying(npy(np.ones((), np.float32))), "shape"),
        (lying(npy(np.zeros((2, 3)))), "dtype"),
        (lying(npy(np.zeros((2, 3), ">f4"))), "dtype"),
        (lying(npy(np.zeros((2, 3), np.int32))), "dtype"),
        (lying(GOOD, shape=(3, 2)), "shape"),
        (lying(GOOD, shape=(1,)), "shape"),
        (lying(GOOD, shape=(2**31 - 1, 2**31 - 1)), "shape"),
        (lying(GOOD, dtype="float64"), "dtype"),
        (lying(GOOD, stype="pickle"), "dtype"),
    ],
)
def test_an_array_that_lies_is_refused_with_its_name(array: Array, reason: str) -> None:
    error = refusal(with_weight(array))
    assert (error.reason, error.tensor) == (reason, "weight")


def test_pickled_objects_are_never_loaded() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([[print] * 3] * 2, dtype=object), allow_pickle=True)
    assert refusal(with_weight(lying(stream.getvalue()))).reason in {"dtype", "bytes"}


def test_a_missing_and_an_extra_tensor_are_refused() -> None:
    record = to_array_record(LAYOUT, VECTOR)
    del record["scale"]
    assert (refusal(record).reason, refusal(record).tensor) == ("names", "scale")
    record = to_array_record(LAYOUT, VECTOR)
    record["more"] = Array(np.zeros(1, np.float32))
    assert (refusal(record).reason, refusal(record).tensor) == ("names", "more")


def test_a_declared_shape_takes_no_memory_before_its_bytes_are_checked() -> None:
    record = ArrayRecord({"weight": lying(GOOD, shape=(2**31 - 1, 2**31 - 1, 2**31 - 1))})
    with pytest.raises(UpdateRejected):
        from_array_record(layout_of_record(record), record)


@given(st.binary(max_size=300))
@example(b"\x93NUMPY\x01\x00\xff\xff")
@example(b"\x93NUMPY\x01\x00\x00\x00")
@example(b"\x93NUMPY\x02\x00\x10\x00\x00\x00")
def test_random_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    refusal(with_weight(lying(data)))


@given(st.binary(max_size=120))
def test_random_headers_are_refused_and_nothing_else_happens(header: bytes) -> None:
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(24)
    refusal(with_weight(lying(data)))


@given(
    st.sampled_from(["<f4", "|O", "('<f4', ())", "", "é", "()"]),
    st.sampled_from(["False", "True", "None", "1"]),
    st.sampled_from(
        ["(2, 3)", "(2,3,)", "(2, )", "(-2, 3)", "(" * 400, f"({'9' * 5000},)", "{}", "2"]
    ),
)
def test_crafted_headers_are_read_as_numpy_does_or_refused(
    descr: str, fortran: str, shape: str
) -> None:
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode(
        "latin-1"
    )
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + VECTOR[:6].tobytes()
    record = with_weight(lying(data))
    if descr == "<f4" and fortran in {"False", "True"} and shape.startswith("(2"):
        if shape == "(2, )":
            assert refusal(record).reason == "shape"
            return
        found = LAYOUT.views(from_array_record(LAYOUT, record))["weight"]
        np.testing.assert_array_equal(found, np.load(io.BytesIO(data)))
    else:
        assert refusal(record).reason in {"bytes", "dtype", "shape"}


def test_no_flipped_bit_crashes() -> None:
    read = refused = 0
    for position, bit in itertools.product(range(len(GOOD)), range(8)):
        data = bytearray(GOOD)
        data[position] ^= 1 << bit
        try:
            from_array_record(LAYOUT, with_weight(lying(bytes(data))))
            read += 1
        except UpdateRejected:
            refused += 1
    assert read >= 24 * 8
    assert refused > 500
