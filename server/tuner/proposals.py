"""Points that a search tries."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedge.errors import ConfigError
from fedge.rng import stream
from server.settings import ServerConfig
from server.tuner.samplers import SAMPLERS
from server.tuner.space import Space, Values, apply_values, narrowed

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)


class Proposer:
    """Asks the sampler for points that can be used.

    Args:
        config: of the server.
        space: what is tuned.
        seed: of the run.
    """

    def __init__(self, config: ServerConfig, space: Space, seed: int) -> None:
        self._config = config
        self._space = space
        self._seed = seed
        self._sampler = SAMPLERS[config.tuner.sampler]()

    def points(
        self,
        seen: Sequence[FrozenTrial],
        count: int,
        *,
        round: int,
        generation: int = 0,
        near: Values | None = None,
        fixed: Values | None = None,
    ) -> list[Values]:
        """Return at most so many distinct points.

        Args:
            seen: finished trials, higher values better.
            count: points wanted.
            round: that they are for.
            generation: of the round's search.
            near: stay in the neighbourhood of this point.
            fixed: values that are not to be changed.
        """
        space = tuple(each for each in self._space if each.key not in (fixed or {}))
        if not space:
            return []
        if near is not None:
            space = narrowed(space, near)
            seen = [
                trial for trial in seen if all(each.holds(trial.params[each.key]) for each in space)
            ]
        purpose = f"tuner-proposals-{generation}"
        rng = stream(self._seed, purpose, round=round, client=self._config.tuner.seed)
        found: list[Values] = []
        for point in self._sampler.propose(seen, space, count, rng) if count else []:
            point = {**point, **(fixed or {})}
            if point not in found and self._is_usable(point):
                found.append(point)
        return found

    def _is_usable(self, point: Values) -> bool:
        try:
            apply_values(self._config, point)
        except ConfigError as error:
            log.info("left out: %s", error)
            return False
        return True
