import numpy as np
import pytest

from fedge.errors import ModelError
from fedge.tflite.selftest import decode_self_test, encode_self_test, run_self_test

INPUTS = np.arange(6, dtype=np.float32).reshape(2, 3)
OUTPUTS = np.array([[1.0], [-4.0]], np.float32)


def test_encoding_and_decoding_are_inverse() -> None:
    content = encode_self_test(INPUTS, OUTPUTS)
    inputs, outputs = decode_self_test(content, (2, 3), (2, 1))
    assert np.array_equal(inputs, INPUTS)
    assert np.array_equal(outputs, OUTPUTS)


@pytest.mark.parametrize(
    ("input_shape", "output_shape"),
    [((2, 3), (1, 2)), ((2, 3), (2, 2)), ((), ()), ((0, 3), (0, 1)), ((2, -3), (2, 1))],
)
def test_shapes_that_do_not_fit_are_refused(
    input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> None:
    with pytest.raises(ModelError, match="self-test"):
        decode_self_test(encode_self_test(INPUTS, OUTPUTS), input_shape, output_shape)


def test_the_difference_is_relative_to_the_largest_output() -> None:
    found = OUTPUTS + np.float32(0.004)
    assert run_self_test(lambda _: found, INPUTS, OUTPUTS, 0.002) == pytest.approx(0.001, rel=1e-3)
    with pytest.raises(ModelError, match=r"differ by 0.001"):
        run_self_test(lambda _: found, INPUTS, OUTPUTS, 0.0005)


@pytest.mark.parametrize("answer", [OUTPUTS[:1], OUTPUTS * np.nan, OUTPUTS * np.inf])
def test_wrong_shapes_and_numbers_that_are_not_finite_fail(answer: np.ndarray) -> None:
    with pytest.raises(ModelError, match="self-test"):
        run_self_test(lambda _: answer, INPUTS, OUTPUTS, 0.1)
