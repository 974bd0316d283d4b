import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ModelError
from fedge.tflite import sentinels
from fedge.tflite.sentinels import MAX_SCALARS, Sentinels


@given(st.integers(0, 5000), st.integers(0, 99))
def test_every_scalar_is_found_again_wherever_it_stands(size: int, seed: int) -> None:
    made = Sentinels(size, seed)
    order = np.random.default_rng(seed + 1).permutation(size)
    assert np.array_equal(made.find(made.weights[order]), order)


def test_values_are_distinct_finite_and_of_the_size_of_weights() -> None:
    weights = Sentinels(200_000, 1).weights
    assert weights.dtype == np.float32
    assert len(np.unique(weights)) == len(weights)
    assert ((np.abs(weights) >= 0.5) & (np.abs(weights) < 8)).all()


def test_the_last_code_is_decoded_too() -> None:
    last = np.array([0, MAX_SCALARS // 2, MAX_SCALARS - 1])
    assert np.array_equal(sentinels._decode(sentinels._encode(last)), last)


def test_ordinary_numbers_are_nobodys() -> None:
    made = Sentinels(100, 1)
    ordinary = np.array([0, -0.0, 1, 0.5, 2, 1e-8, np.inf, -np.inf, np.nan], np.float32)
    assert made.find(ordinary).tolist() == [-1] * len(ordinary)


def test_a_model_that_is_too_large_is_refused_with_both_numbers() -> None:
    with pytest.raises(ModelError, match=f"{MAX_SCALARS + 1} scalars.*{MAX_SCALARS} at most"):
        Sentinels(MAX_SCALARS + 1, 1)
