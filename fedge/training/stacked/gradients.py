"""What an engine computes for one step of many clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Of Opacus' clipping coefficient, so that both paths clip alike.
_CLIP_SLACK = 1e-6

Weights = Mapping[str, Tensor]
"""The clients' trained parameters by name, each ``[K, *shape]``."""


class Product(NamedTuple):
    """A gradient ``[K, m, p]`` that an optimiser may add without holding it."""

    left: Tensor
    right: Tensor

    def value(self) -> Tensor:
        """Return it in float32."""
        return torch.bmm(self.left, self.right).float()


Gradients = dict[str, Tensor | Product]
"""Gradients by parameter name; one that the output does not depend on is left out."""


class StepInputs(NamedTuple):
    """One batch of each client; rows past a client's own are copies of another of its rows.

    Attributes:
        inputs: ``[K, W, ...]``.
        targets: ``[K, W, ...]``.
        shares: ``[K, W]``, what each row's loss counts: 0 for those past the client's own.
    """

    inputs: Tensor
    targets: Tensor
    shares: Tensor


class Engine(Protocol):
    """Computes gradients of many clients at once, each at its own weights."""

    def gradients(self, weights: Weights, batch: StepInputs) -> tuple[Tensor, Gradients]:
        """Return each row's loss ``[K, W]`` and the gradients of their sums in shares."""
        ...

    def clipped(
        self, weights: Weights, batch: StepInputs, clip_norms: Tensor
    ) -> tuple[Tensor, Tensor, Gradients]:
        """Return each row's loss and gradient norm ``[K, W]``, and sums of clipped gradients.

        Args:
            clip_norms: of each client, ``[K]``.
        """
        ...


def clip_shares(norms: Tensor, clip_norms: Tensor, shares: Tensor) -> Tensor:
    """Return what each row's gradient counts, ``[K, W]``; nothing past a client's own rows."""
    factors = (clip_norms[:, None] / (norms + _CLIP_SLACK)).clamp(max=1.0)
    return torch.where(shares > 0, factors, 0.0)
