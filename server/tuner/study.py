"""What the tuner knows, in ``tuner.db`` of the run folder: two Optuna studies in one SQLite file.

``<run>/rounds-…`` has one trial a real round: running from its choice until the round is
committed. ``<run>/candidates-…`` has one trial a candidate of a search, written when it is over. A
name ends with a digest of the space: with another space the studies begin anew.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedge.errors import CheckpointError
from server.tuner.samplers import PROPOSED, distributions_of
from server.tuner.search import Candidate, ranks
from server.tuner.space import Space, Values

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

DATABASE = "tuner.db"
ROUNDS, CANDIDATES = "rounds", "candidates"
T = TypeVar("T")


class StudyLog:
    """The two studies of one run.

    Args:
        run_dir: of the run.
        run_name: names the studies.
        space: what is tuned.

    Raises:
        CheckpointError: the file cannot be read or written.
    """

    def __init__(self, run_dir: Path, run_name: str, space: Space) -> None:
        self._distributions = distributions_of(space)
        self._path = run_dir / DATABASE
        digest = hashlib.sha256(repr(space).encode()).hexdigest()[:8]
        self._studies = self._guarded(
            lambda: {
                kind: open_study(self._path, f"{run_name}/{kind}-{digest}")
                for kind in (ROUNDS, CANDIDATES)
            }
        )

    def rounds(self) -> list[FrozenTrial]:
        """Return the trials of real rounds, oldest first."""
        return self._guarded(lambda: self._studies[ROUNDS].get_trials(deepcopy=False))

    def candidates(self) -> list[FrozenTrial]:
        """Return the trials of candidates, oldest first."""
        return self._guarded(lambda: self._studies[CANDIDATES].get_trials(deepcopy=False))

    def open_round(self, values: Values, attributes: dict[str, Any]) -> int:
        """Write down a round's choice before anybody is asked; return the trial's number."""
        from optuna.trial import TrialState, create_trial

        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(values),
            distributions=self._distributions,
            user_attrs=attributes,
        )
        self._guarded(lambda: self._studies[ROUNDS].add_trial(trial))
        return self.rounds()[-1].number

    def close_round(self, number: int, gain: float | None) -> None:
        """Tell a running round what it brought; None where nothing can be said of it."""
        from optuna.trial import TrialState

        study = self._studies[ROUNDS]
        if gain is None:
            self._guarded(lambda: study.tell(number, state=TrialState.FAIL))
        else:
            self._guarded(lambda: study.tell(number, gain))

    def trials_of(self, round: int, candidates: Sequence[Candidate]) -> list[FrozenTrial]:
        """Return how the candidates of a search fared, as trials."""
        from optuna.trial import TrialState, create_trial

        found = []
        for each in candidates:
            attributes: dict[str, Any] = {"round": round, "gain": each.gain}
            if each.proposed:
                attributes[PROPOSED] = True
            beaten = ranks(each, candidates)
            trial = create_trial(
                state=TrialState.COMPLETE if each.finished else TrialState.PRUNED,
                value=beaten[max(beaten)] if each.finished else None,
                params=dict(each.values),
                distributions=self._distributions,
                user_attrs=attributes,
                intermediate_values=beaten,
            )
            found.append(trial)
        return found

    def add_search(self, round: int, candidates: Sequence[Candidate]) -> None:
        """Write down how the candidates of a search fared."""
        for trial in self.trials_of(round, candidates):
            self._add_candidate(trial)

    def _add_candidate(self, trial: FrozenTrial) -> None:
        self._guarded(lambda: self._studies[CANDIDATES].add_trial(trial))

    def _guarded(self, work: Callable[[], T]) -> T:
        return guarded(self._path, work)


def guarded(path: Path, work: Callable[[], T]) -> T:
    """Map what Optuna and SQLite raise.

    Raises:
        CheckpointError: names the file.
    """
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return work()
    except (OptunaError, SQLAlchemyError) as error:
        raise CheckpointError(
            f"cannot use {path}: {str(error).splitlines()[0]}; free disk space, or move "
            "the file away to begin a new study, then start the same run again: it resumes"
        ) from error


def open_study(path: Path, name: str) -> optuna.Study:
    """Return a study of a SQLite file, made if it is not there; higher values are better."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=f"sqlite:///{path}", study_name=name, direction="maximize", load_if_exists=True
    )
