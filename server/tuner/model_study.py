"""What a search for sizes has tried, as an Optuna study in ``tuner.db`` of the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from server.settings import ServerConfig
from server.tuner.model_price import Price
from server.tuner.model_rating import SizedModel, rate
from server.tuner.samplers import PROPOSED, distributions_of
from server.tuner.space import Space
from server.tuner.study import DATABASE, guarded, open_study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MODELS = "models"


class ModelStudy:
    """One study; whatever losses depend on is in its name, so that only like are compared.

    Args:
        config: of the server.
        space: what is tuned.

    Raises:
        CheckpointError: the file cannot be read or written.
    """

    def __init__(self, config: ServerConfig, space: Space) -> None:
        self._config = config.tuner.model
        self._distributions = distributions_of(space)
        self._path = config.run_dir / DATABASE
        config.run_dir.mkdir(parents=True, exist_ok=True)
        tuner = replace(config.tuner, model=type(config.tuner.model)())
        said = (space, config.task, config.train, config.aggregation, tuner, config.seed)
        digest = hashlib.sha256(repr(said).encode()).hexdigest()[:8]
        name = f"{config.run_name}/{MODELS}-{digest}"
        self._study = guarded(self._path, lambda: open_study(self._path, name))

    def trials(self) -> list[FrozenTrial]:
        """Return what was tried as Optuna has it, oldest first."""
        return guarded(self._path, lambda: self._study.get_trials(deepcopy=False))

    def models(self) -> list[SizedModel]:
        """Return what was tried, oldest first."""
        found = []
        for trial in self.trials():
            losses, price = trial.user_attrs["losses"], trial.user_attrs["price"]
            model = SizedModel(
                dict(trial.params),
                None if losses is None else tuple(losses),
                None if price is None else Price(**price),
            )
            found.append(model)
        return found

    def add(self, tried: Sequence[SizedModel]) -> None:
        """Write down the last of all that was tried."""
        from optuna.trial import TrialState, create_trial

        last = tried[-1]
        rated = rate(tried, self._config)[-1] if last.losses is not None else None
        attributes: dict[str, Any] = {
            "losses": last.losses,
            "price": None if last.price is None else asdict(last.price),
        }
        if len(tried) > 1:
            attributes[PROPOSED] = True
        trial = create_trial(
            state=TrialState.FAIL if rated is None else TrialState.COMPLETE,
            value=None if rated is None else rated.score,
            params=dict(last.values),
            distributions=self._distributions,
            user_attrs=attributes,
        )
        guarded(self._path, lambda: self._study.add_trial(trial))
