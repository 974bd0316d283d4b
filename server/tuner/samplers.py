"""Where candidates come from, by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedge.naming import Registry
from server.tuner.space import Parameter, Space, Values, spread

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    Trials = Sequence[FrozenTrial]

NUM_FIRST = 8
"""Outcomes that TPE must know before it proposes by them."""
PROPOSED = "proposed"
"""Attribute of a trial whose point a sampler proposed."""


class Sampler(Protocol):
    """Proposes points of a space; the same for the same trials and generator."""

    def propose(
        self, seen: Trials, space: Space, count: int, rng: np.random.Generator
    ) -> list[Values]:
        """Return at most so many points to try.

        Args:
            seen: finished trials over the same space, higher values better.
            space: what is tuned.
            count: points wanted.
            rng: of this proposal alone.
        """
        ...


SAMPLERS: Registry[Callable[[], Sampler]] = Registry("sampler")


@SAMPLERS.register("tpe")
class Tpe:
    """Points like those that were good; at first points that fill the space.

    Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.
    """

    def propose(
        self, seen: Trials, space: Space, count: int, rng: np.random.Generator
    ) -> list[Values]:
        """Return points by the estimator, or a Latin hypercube before it knows enough."""
        from optuna.samplers import TPESampler

        if len(seen) < NUM_FIRST:
            return spread(space, count, rng)
        seed = int(rng.integers(2**31))
        return _ask(TPESampler(seed=seed, n_startup_trials=NUM_FIRST), seen, space, count)


@SAMPLERS.register("random")
class Random:
    """Independent uniform draws."""

    def propose(
        self, seen: Trials, space: Space, count: int, rng: np.random.Generator
    ) -> list[Values]:
        """Return draws that know nothing of earlier trials."""
        from optuna.samplers import RandomSampler

        return _ask(RandomSampler(seed=int(rng.integers(2**31))), seen, space, count)


@SAMPLERS.register("grid")
class Grid:
    """Every point of a grid in turn, again and again: what is good changes with the model."""

    def propose(
        self, seen: Trials, space: Space, count: int, rng: np.random.Generator
    ) -> list[Values]:
        """Return the points that follow those proposed last."""
        del rng
        points = list(itertools.product(*(each.grid() for each in space)))
        last = sum(PROPOSED in trial.user_attrs for trial in seen)
        names = [each.key for each in space]
        chosen = [points[(last + step) % len(points)] for step in range(min(count, len(points)))]
        return [dict(zip(names, point, strict=True)) for point in chosen]


def distribution(parameter: Parameter) -> Any:
    """Return Optuna's own form of a parameter."""
    from optuna import distributions

    if parameter.choices:
        return distributions.CategoricalDistribution(parameter.choices)
    if parameter.whole:
        return distributions.IntDistribution(
            int(parameter.low), int(parameter.high), log=parameter.log
        )
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def distributions_of(space: Space) -> dict[str, Any]:
    """Return Optuna's own form of a space."""
    return {each.key: distribution(each) for each in space}


def _ask(sampler: Any, seen: Trials, space: Space, count: int) -> list[Values]:
    """Ask in a study in memory, so that the stored one holds no trial that nobody made."""
    import optuna

    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(seen)
    wanted = distributions_of(space)
    return [dict(study.ask(wanted).params) for _ in range(count)]
