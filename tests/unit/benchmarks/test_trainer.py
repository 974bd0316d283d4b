"""What the trainer's benchmarks compare is the same work."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.bare_loop import run_bare_loop
from benchmarks.harness import CannotRun
from benchmarks.step_clock import StepClock
from benchmarks.tasks.random_text import RandomText
from benchmarks.trainer import SPEC
from benchmarks.trainer_gpu import _flops_a_token, measure
from fedge.training.local import LocalTrainer
from server.trainer.alone import refining_alone
from server.trainer.loop import Control

TASK = RandomText(width=16, depth=2, heads=2, context=8, num_proxy=12)


def test_the_bare_loop_ends_with_the_weights_of_the_trainer() -> None:
    spec = replace(SPEC, batch_size=5, steps=6, learning_rate=1e-3)
    weights, clock = LocalTrainer(TASK).initial_weights(0), StepClock()
    bare = run_bare_loop(TASK, weights, spec, torch.device("cpu"))
    ours = refining_alone(TASK).run(weights, spec, Control(progress=clock.tick))
    np.testing.assert_allclose(ours.weights, bare.weights, atol=1e-6)
    assert not np.allclose(ours.weights, weights, atol=1e-4)
    assert min(clock.seconds, bare.seconds) > 0


def test_flops_are_those_of_each_product() -> None:
    width, context, vocabulary = 16, 8, len(TASK.alphabet)
    a_block = 4 * width * width + 2 * 4 * width * width  # query, key, value, out; up, down
    attention = 2 * width * context  # scores and mixing
    forward = 2 * (2 * (a_block + attention) + width * vocabulary)
    # Biases and norms are counted as if they were multiplied: a few of a thousand.
    assert _flops_a_token(TASK) == pytest.approx(3 * forward, rel=0.07)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_reason_is_told() -> None:
    with pytest.raises(CannotRun, match="no CUDA device"):
        measure(quick=True)
