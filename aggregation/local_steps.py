"""What a client's local steps amount to; server and device compute it alike, without torch."""

from __future__ import annotations

import numpy as np

from fedge.params import Vector


def effective_steps(num_steps: float, momentum: float) -> float:
    """Return how many plain gradient steps the steps of SGD with momentum sum up to.

    Each gradient acts on all later steps too, so with momentum ρ the weights of τ gradients add
    up to (τ − ρ(1 − ρ^τ)/(1 − ρ)) / (1 − ρ); without momentum to τ. An update divided by it
    and by the learning rate is a mean of gradients.

    Source: Wang et al. 2020, arXiv:2007.07481, the norm of ``a_i``.

    Args:
        num_steps: >= 1.
        momentum: in [0, 1).
    """
    rest = 1.0 - momentum
    echo: float = momentum * (1.0 - momentum**num_steps) / rest
    return (num_steps - echo) / rest


def next_control(
    own: Vector | None,
    control: Vector | None,
    delta: Vector,
    *,
    num_steps: float,
    learning_rate: float,
    momentum: float = 0.0,
) -> Vector:
    """Return a SCAFFOLD client's control after a round (option II of the paper).

    Source: Karimireddy et al. 2020, arXiv:1910.06378.

    Args:
        own: the client's control that the round trained with; None is zero.
        control: the server's control that the round trained with; None is zero.
        delta: the update as the server will decode it, so that both sides agree.
        learning_rate: of the client, > 0.
    """
    scale = -1.0 / (effective_steps(num_steps, momentum) * learning_rate)
    following = delta * np.float32(scale)
    if own is not None:
        following += own
    if control is not None:
        following -= control
    return following
