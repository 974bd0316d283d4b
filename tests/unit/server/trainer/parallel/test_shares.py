"""Shares of a batch: every example counts once, whatever the batch can be divided by."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from server.trainer.parallel.degrees import Degrees, MeshConfig
from server.trainer.parallel.shares import num_micro_batches, share_of


@given(
    num_examples=st.integers(1, 60),
    num_parts=st.integers(1, 9),
    micro_batches=st.integers(1, 7),
)
def test_each_example_has_the_same_weight_in_one_share(
    num_examples: int, num_parts: int, micro_batches: int
) -> None:
    shares = [share_of(num_examples, n, num_parts, micro_batches) for n in range(num_parts)]
    weights = torch.zeros(num_examples)
    for share in shares:
        weights.index_add_(0, share.positions, share.weights)
        assert len(share.positions) == len(share.weights)
        assert len(share.positions) == micro_batches * share.micro_batch_size
        assert share.micro_batch_size == shares[0].micro_batch_size
    torch.testing.assert_close(weights, torch.full((num_examples,), 1 / num_examples))


def test_a_pipeline_gets_two_micro_batches_a_stage_and_never_fewer_than_one() -> None:
    assert num_micro_batches(Degrees(), MeshConfig()) == 1
    assert num_micro_batches(Degrees(pipeline=4), MeshConfig()) == 8
    assert num_micro_batches(Degrees(pipeline=4), MeshConfig(micro_batches=5)) == 5
    assert num_micro_batches(Degrees(pipeline=4), MeshConfig(micro_batches=2)) == 4
