"""Configuration of the tuner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedge.config import limited


@dataclass(frozen=True)
class StartConfig:
    """Choice of what a run keeps from its start, by ``fedge-server tune-start``.

    Attributes:
        space: options of the task, such as ``width``, and ``central_privacy.noise_split``: a list
            of choices, or ``{low, high, log}``.
        sampler: ``tpe``, ``random`` or ``grid``.
        candidates: points that are tried, the configured one among them.
        draws: series of central noise that each is tried under, where there is any.
        latency_price: by how much the logarithm of the loss must fall to pay for twice the latency.
        size_price: the same for twice the bytes.
    """

    space: dict[str, Any] = field(default_factory=dict)
    sampler: str = "tpe"
    candidates: int = limited(8, ge=2)
    draws: int = limited(8, ge=1)
    latency_price: float = limited(0.02, ge=0)
    size_price: float = limited(0.02, ge=0)


@dataclass(frozen=True)
class TunerConfig:
    """Choice of each round's hyperparameters; see docs/tuning.md.

    Attributes:
        sampler: ``tpe``, ``random`` or ``grid``; empty switches the tuner off.
        pruner: ``halving`` drops half of the candidates after a quarter and after half of
            the virtual rounds; ``none`` drops nobody.
        readout: weights that candidates are scored at: ``average`` over the later virtual rounds,
            or ``last``.
        schedule: when later searches are due: ``stall``, once real rounds no longer lower the gate
            set's loss; ``interval``.
        space: what is tuned, by dotted key: a list of choices, or ``{low, high, log, points}``.
        candidates: compared at once before round 1, the values in use among them; half as many in
            later generations and searches.
        generations: of candidates before round 1, each proposed with what the earlier ones told.
        virtual_rounds: rounds of each virtual federation on the proxy data; 0 leaves them out,
            and real rounds alone teach the tuner.
        clients: pseudo-clients of a virtual federation.
        client_examples: proxy examples that each draws, best as many as a device has; at most
            half of those that are trained on.
        alpha: of the Dirichlet that each one's mix of labels is drawn from; 0 draws evenly.
        holdout: share of the proxy data that candidates are scored on and never trained on; with
            ``refine.trainer`` set it is ``refine.held_out``, the same examples.
        every_rounds: the schedule's rounds, of an interval or without a new low of the loss.
        patience: searches in a row that change nothing, after which none is made until the gate
            set's loss rises; 0 never stops.
        budget: examples that virtual federations may pass through the model in a run, after
            which no search begins; 0 sets no bound.
        noise_multiplier: of DP-SGD on pseudo-clients, to resemble devices that train so.
        start: search before a run.
        seed: joins the run's seed.
    """

    sampler: str = ""
    pruner: str = "halving"
    readout: str = "average"
    schedule: str = "stall"
    space: dict[str, Any] = field(default_factory=dict)
    candidates: int = limited(8, ge=1)
    generations: int = limited(3, ge=1)
    virtual_rounds: int = limited(12, ge=0)
    clients: int = limited(8, ge=1)
    client_examples: int = limited(100, ge=1)
    alpha: float = limited(1.0, ge=0)
    holdout: float = limited(0.25, gt=0, lt=1)
    every_rounds: int = limited(5, ge=1)
    patience: int = limited(4, ge=0)
    budget: int = limited(0, ge=0)
    noise_multiplier: float = limited(0.0, ge=0)
    start: StartConfig = field(default_factory=StartConfig)
    seed: int = limited(0, ge=0)
