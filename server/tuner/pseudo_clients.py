"""The proxy data as a small federation: a held-out part, and the rest dealt to pseudo-clients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError
from fedge.rng import stream
from fedge.task import Examples

NUM_BINS = 10
"""Quantiles that stand for labels where targets are continuous."""

Index = npt.NDArray[np.int64]


def split_proxy(proxy: Examples, holdout: float, seed: int) -> tuple[Examples, Examples]:
    """Return the part to train on and the part to score on, the same in all rounds of a run.

    Raises:
        ConfigError: one of them would be empty.
    """
    num_held = round(holdout * len(proxy))
    if not 0 < num_held < len(proxy):
        raise ConfigError(
            f"leaves {len(proxy) - num_held} proxy examples to train on and {num_held} to score "
            "on: the task needs more, or set tuner.virtual_rounds = 0",
            key="tuner.holdout",
        )
    order = stream(seed, "tuner-holdout").permutation(len(proxy))
    return proxy.subset(np.sort(order[num_held:])), proxy.subset(np.sort(order[:num_held]))


def deal(
    examples: Examples, num_clients: int, alpha: float, rng: np.random.Generator
) -> list[Examples]:
    """Return what each pseudo-client has; one that got nothing is left out.

    Args:
        examples: what is dealt, each to one client.
        num_clients: at most.
        alpha: of a symmetric Dirichlet over the clients for each label; 0 deals evenly.
        rng: draws who gets what.
    """
    labels = _labels(examples.targets)
    if alpha == 0 or labels is None:
        parts = np.array_split(rng.permutation(len(examples)), num_clients)
        return [examples.subset(part) for part in parts if len(part)]
    owners = np.empty(len(examples), np.int64)
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum(_shares(rng, num_clients, alpha))[:-1] * len(positions))
        for client, part in enumerate(np.split(positions, ends.astype(np.int64))):
            owners[part] = client
    parts = [np.flatnonzero(owners == client) for client in range(num_clients)]
    return [examples.subset(part) for part in parts if len(part)]


def _shares(rng: np.random.Generator, num_clients: int, alpha: float) -> npt.NDArray[np.float64]:
    shares: npt.NDArray[np.float64] = rng.dirichlet(np.full(num_clients, alpha))
    if np.isfinite(shares).all():
        return shares
    everything = np.zeros(num_clients)  # alpha is too small for a draw: one gets all
    everything[rng.integers(num_clients)] = 1.0
    return everything


def _labels(targets: npt.NDArray[np.generic]) -> Index | None:
    """Return a class of each example; None where a target is more than one number."""
    if targets.ndim != 1:
        return None
    if np.issubdtype(targets.dtype, np.floating):
        cuts = np.quantile(targets.astype(np.float64), np.linspace(0, 1, NUM_BINS + 1)[1:-1])
        found: Index = np.searchsorted(cuts, targets.astype(np.float64)).astype(np.int64)
    else:
        found = np.unique(targets, return_inverse=True)[1].astype(np.int64)
    return found
