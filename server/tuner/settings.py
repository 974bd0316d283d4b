"""Configuration of the tuner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedge.config import limited


@dataclass(frozen=True)
class TunerConfig:
    """Choice of each round's hyperparameters; see docs/tuning.md.

    Attributes:
        sampler: ``tpe``, ``random`` or ``grid``; empty switches the tuner off.
        pruner: ``halving`` drops half of the candidates after each virtual round; ``none``.
        space: what is tuned, by dotted key: a list of choices, or ``{low, high, log, points}``.
        candidates: compared in one search, the values in use among them.
        virtual_rounds: rounds of each virtual federation on the proxy data; 0 leaves them out,
            and real rounds alone teach the tuner.
        clients: pseudo-clients that the proxy data are split into.
        alpha: of the Dirichlet that deals each label to them; 0 splits evenly at random.
        holdout: share of the proxy data that candidates are scored on and never trained on.
        every_rounds: search before every so many rounds.
        patience: searches in a row that change nothing, after which none is made until the gate
            set's loss rises; 0 never stops.
        budget: examples that virtual federations may pass through the model in a run, after
            which no search begins; 0 sets no bound.
        noise_multiplier: of DP-SGD on pseudo-clients, to resemble devices that train so.
        seed: joins the run's seed.
    """

    sampler: str = ""
    pruner: str = "halving"
    space: dict[str, Any] = field(default_factory=dict)
    candidates: int = limited(8, ge=1)
    virtual_rounds: int = limited(3, ge=0)
    clients: int = limited(6, ge=1)
    alpha: float = limited(1.0, ge=0)
    holdout: float = limited(0.25, gt=0, lt=1)
    every_rounds: int = limited(1, ge=1)
    patience: int = limited(4, ge=0)
    budget: int = limited(0, ge=0)
    noise_multiplier: float = limited(0.0, ge=0)
    seed: int = limited(0, ge=0)
