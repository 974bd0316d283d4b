"""What a search before a run has tried, as an Optuna study in ``tuner.db`` of the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from fedge.errors import CheckpointError
from server.settings import ServerConfig
from server.tuner.samplers import PROPOSED, distributions_of
from server.tuner.settings import StartConfig
from server.tuner.space import Space
from server.tuner.start.price import Price
from server.tuner.start.rating import Tried, rate
from server.tuner.study import DATABASE, guarded, open_study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

START = "start"


class StartStudy:
    """One study; whatever losses depend on is in its name, so that only like are compared.

    Args:
        config: of the server.
        space: what is tuned.

    Raises:
        CheckpointError: the file cannot be read or written.
    """

    def __init__(self, config: ServerConfig, space: Space) -> None:
        self._config = config.tuner.start
        self._distributions = distributions_of(space)
        self._path = config.run_dir / DATABASE
        try:
            config.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make {config.run_dir}: {error.strerror}") from error
        refine, tuner = config.refine, replace(config.tuner, start=StartConfig())
        said = (
            space,
            (config.task, config.train, config.aggregation, config.central_privacy, config.rounds),
            (refine.held_out, bool(refine.trainer), tuner, self._config.draws, config.seed),
        )
        digest = hashlib.sha256(repr(said).encode()).hexdigest()[:8]
        name = f"{config.run_name}/{START}-{digest}"
        self._study = guarded(self._path, lambda: open_study(self._path, name))

    def tried(self) -> list[Tried]:
        """Return what was tried, the configured point first."""
        found = []
        for trial in guarded(self._path, lambda: self._study.get_trials(deepcopy=False)):
            losses, price = trial.user_attrs["losses"], trial.user_attrs["price"]
            each = Tried(
                dict(trial.params),
                tuple(map(tuple, losses)),
                None if price is None else Price(**price),
            )
            found.append(each)
        return found

    def trials(self, tried: Sequence[Tried]) -> list[FrozenTrial]:
        """Return what a sampler learns from: those that could be had, at today's prices."""
        had = [each for each in tried if each.losses is not None]
        rated = rate(had, self._config)
        return [
            self._trial(each, score.score, {PROPOSED: True} if at else {})
            for at, (each, score) in enumerate(zip(had, rated, strict=True))
        ]

    def add(self, tried: Tried) -> None:
        """Write down what was tried last, with its score of today for the plots."""
        attributes = {
            "losses": tried.losses,
            "price": None if tried.price is None else asdict(tried.price),
        }
        score = rate([*self.tried(), tried], self._config)[-1].score
        trial = self._trial(tried, score, attributes)
        guarded(self._path, lambda: self._study.add_trial(trial))

    def _trial(self, tried: Tried, score: float, attributes: dict[str, Any]) -> FrozenTrial:
        from optuna.trial import create_trial

        return create_trial(
            value=score,
            params=dict(tried.values),
            distributions=self._distributions,
            user_attrs=attributes,
        )
