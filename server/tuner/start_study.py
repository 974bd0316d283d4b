"""What a search before a run has tried, as an Optuna study in ``tuner.db`` of the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from fedge.errors import CheckpointError
from server.settings import ServerConfig
from server.tuner.model_price import Price
from server.tuner.samplers import PROPOSED, distributions_of
from server.tuner.settings import StartConfig
from server.tuner.space import Space
from server.tuner.start_rating import Tried, rate
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

    def trials(self) -> list[FrozenTrial]:
        """Return what was tried as Optuna has it, oldest first."""
        return guarded(self._path, lambda: self._study.get_trials(deepcopy=False))

    def tried(self) -> list[Tried]:
        """Return what was tried, oldest first."""
        found = []
        for trial in self.trials():
            losses, price = trial.user_attrs["losses"], trial.user_attrs["price"]
            each = Tried(
                dict(trial.params),
                None if losses is None else tuple(map(tuple, losses)),
                None if price is None else Price(**price),
            )
            found.append(each)
        return found

    def add(self, tried: Sequence[Tried]) -> None:
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
