from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_client.worker import Ask
from edge_client.worker_frames import (
    ask_from_json,
    ask_to_json,
    vectors_from_payload,
    vectors_to_payload,
)
from fedge.params import Vector
from fedge.privacy.accounting import Spend
from fedge.settings import Hyperparameters, PrivacyConfig

stacks = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 3), st.integers(1, 20)), elements=st.floats(width=32)
)


@given(stacks)
def test_vectors_cross_to_the_training_process_bit_by_bit(stack: Vector) -> None:
    payload = bytearray(vectors_to_payload(*stack))
    found = vectors_from_payload(payload, len(stack))
    assert [vector.tobytes() for vector in found] == [vector.tobytes() for vector in stack]
    assert all(vector.dtype == np.float32 for vector in found)


def test_a_single_vector_is_not_copied() -> None:
    weights = np.ones(5, np.float32)
    assert np.shares_memory(np.frombuffer(vectors_to_payload(weights), np.float32), weights)


def test_vectors_of_different_lengths_are_never_cut_in_the_middle() -> None:
    payload = bytearray(vectors_to_payload(np.ones(4, np.float32), np.ones(3, np.float32)))
    with pytest.raises(ValueError, match="equal division"):
        vectors_from_payload(payload, 2)


def test_an_ask_crosses_with_every_hyperparameter() -> None:
    hyper = Hyperparameters(
        client_term="fedprox", proximal_mu=0.5, weight_decay=1e-4, personal_layers=("head.*",)
    )
    ask = Ask("a" * 64, hyper, PrivacyConfig(), 3, (Spend(1.0, 0.5, 2),), 1.5)
    assert ask_from_json(json.loads(json.dumps(ask_to_json(ask)))) == ask
