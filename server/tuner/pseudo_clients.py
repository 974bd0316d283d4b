"""The proxy data as a small federation: a held-out part, and clients that draw from the rest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError, RefineError
from fedge.task import Examples
from server.settings import ServerConfig
from server.trainer.proxy_split import split_proxy

NUM_BINS = 10
"""Quantiles that stand for labels where targets are continuous."""

Index = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


def proxy_parts(proxy: Examples, config: ServerConfig) -> tuple[Examples, Examples]:
    """Return the part to train on and the part to score on, the same in all rounds of a run.

    With refinement on they are the refinement's: weights that it trained are scored on what it
    has not seen.

    Raises:
        ConfigError: one of them would be empty.
    """
    refines = bool(config.refine.trainer)
    share = config.refine.held_out if refines else config.tuner.holdout
    try:
        fit, held = split_proxy(proxy, config.seed, share)
    except RefineError as error:
        raise ConfigError(
            f"{error}: the task needs more, or set tuner.virtual_rounds = 0",
            key="refine.held_out" if refines else "tuner.holdout",
        ) from None
    return fit, held


def draw_clients(
    examples: Examples, num_clients: int, size: int, alpha: float, rng: np.random.Generator
) -> list[Examples]:
    """Return what each pseudo-client has: distinct examples, some of which others have too.

    A client with few labels has fewer examples where there are no more of them.

    Args:
        examples: what is drawn from, at least one.
        num_clients: how many draw.
        size: examples that each draws, at least one; all of them if there are no more.
        alpha: of the Dirichlet that each one's mix of labels comes from, by label where all are
            equally frequent; 0 draws from all examples alike.
        rng: draws who gets what.

    Source: Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification, 2019.
    """
    labels = _labels(examples.targets)
    if alpha == 0 or labels is None:
        labels = np.zeros(len(examples), np.int64)
    return [examples.subset(_draw(labels, size, alpha, rng)) for _ in range(num_clients)]


def _draw(labels: Index, size: int, alpha: float, rng: np.random.Generator) -> Index:
    """Return the positions of one client's examples, ascending."""
    counts = np.bincount(labels)
    weights = (_mix(counts, alpha, rng) / counts)[labels]
    size = min(size, int(np.count_nonzero(weights)))
    drawn = rng.choice(len(labels), size, replace=False, p=weights / weights.sum())
    return np.sort(drawn)


def _mix(counts: Index, alpha: float, rng: np.random.Generator) -> Shares:
    """Return the share of each label in what a client draws."""
    if len(counts) == 1:
        return np.ones(1)
    mix: Shares = rng.dirichlet(alpha * len(counts) * counts / counts.sum())
    if np.isfinite(mix).all() and mix.any():
        return mix
    only = np.zeros(len(counts))  # alpha is too small for a draw: the client has one label
    only[rng.integers(len(counts))] = 1.0
    return only


def _labels(targets: npt.NDArray[np.generic]) -> Index | None:
    """Return a class of each example, 0 to the number of classes less 1, none of them empty.

    None where a target is more than one number.
    """
    if targets.ndim != 1:
        return None
    values: npt.NDArray[np.generic] = targets
    if np.issubdtype(targets.dtype, np.floating):
        cuts = np.quantile(targets.astype(np.float64), np.linspace(0, 1, NUM_BINS + 1)[1:-1])
        values = np.searchsorted(cuts, targets.astype(np.float64))
    found: Index = np.unique(values, return_inverse=True)[1].astype(np.int64)
    return found
