"""Chooses each round's hyperparameters, and learns from what the round brought."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fedge.params import Layout
from fedge.privacy.noise import Draws
from fedge.task import CloudData, Task
from server.checkpoint import Checkpoint
from server.model_update import ModelUpdate
from server.settings import ServerConfig
from server.tuner.correction import correction, outcomes_of
from server.tuner.federation import VirtualFederation
from server.tuner.proposals import Proposer
from server.tuner.schedules import reason_against
from server.tuner.search import LOSS_FLOOR, Candidate, best_of
from server.tuner.searcher import Searcher
from server.tuner.space import PRIVATE_COST, Values, apply_values, parse_space, values_in
from server.tuner.study import StudyLog

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

METRIC = "loss_gate"


@dataclass(frozen=True)
class Choice:
    """What a round trains with, as ``metrics.jsonl`` has it under ``tuner``.

    Attributes:
        why: in a few words.
        searched: whether candidates were compared for this round.
        kept: whether the values are those of the round before.
        promised: gain in the virtual federation; None without one.
        loss_before: of the gate set at the round's parent.
        passes: examples that virtual federations passed through the model for this choice.
        private: whether devices ever said an ε, so that what a round costs them is left as it is.
    """

    values: Values
    why: str
    searched: bool = False
    kept: bool = True
    promised: float | None = None
    loss_before: float | None = None
    passes: int = 0
    num_candidates: int = 0
    private: bool = False


class Tuner:
    """Gives each round its configuration.

    Whatever round is asked for, what the committed one brought is told first, so that a server that
    was killed at any instant goes on with the same knowledge; a round that had a choice already
    keeps it, so that devices asked again answer with what they have stored.

    Args:
        config: of the server; its own values are those of the first round.
        task: what is learnt.
        data: the cloud's; the proxy set is tried on.
        layout: of the model.
        draws: where central noise comes from, as `ModelUpdate` takes it.
        seed: of the run.

    Raises:
        ConfigError: the section cannot be used; names the key.
        CheckpointError: the study cannot be opened.
    """

    def __init__(
        self,
        config: ServerConfig,
        task: Task,
        data: CloudData,
        layout: Layout,
        draws: Callable[[int], Draws] | None,
        seed: int,
    ) -> None:
        wanted = config.tuner
        self._config = config
        self._layout = layout
        self._draws = draws
        self._space = parse_space(wanted.space, config)
        self._proposer = Proposer(config, self._space, seed)
        self._study = StudyLog(config.run_dir, config.run_name, self._space)
        self._searcher = None
        if wanted.virtual_rounds > 0:
            federation = VirtualFederation(task, config, data, seed)
            self._searcher = Searcher(config, self._proposer, federation, self._study)
        self.report: dict[str, Any] = {}

    def next_round(self, state: Checkpoint) -> tuple[ServerConfig, ModelUpdate]:
        """Return the configuration of the round after a state, and how its updates are applied.

        Raises:
            CheckpointError: the choice cannot be written down.
        """
        self.tell(state)
        choice, candidates = self._choice_for(state)
        attributes = {**asdict(choice), "round": state.round + 1, "parent": state.digest}
        # First of all: a search that is cut off is made again and ends the same way.
        number = self._study.open_round(attributes.pop("values"), attributes)
        self._study.add_search(state.round + 1, candidates)
        self.report = {"tuner": {**asdict(choice), "trial": number}}
        log.info("round %d: %s (%s)", state.round + 1, choice.values, choice.why)
        config = apply_values(self._config, choice.values)
        return config, ModelUpdate(config, self._layout, self._draws)

    def tell(self, state: Checkpoint) -> None:
        """Close every open round: the committed one with what it brought, others without."""
        for trial in self._study.rounds():
            if not trial.state.is_finished():
                self._study.close_round(trial.number, _gain(trial, state))

    def _choice_for(self, state: Checkpoint) -> tuple[Choice, list[Candidate]]:
        """Return the choice, and the candidates of the search behind it."""
        trials = self._study.rounds()
        for trial in reversed(trials):
            attributes = trial.user_attrs
            if attributes["round"] == state.round + 1 and attributes["parent"] == state.digest:
                known = {name: attributes[name] for name in attributes if name in _RECORDED}
                return Choice(dict(trial.params), **known), []
        past = [trial for trial in _latest(trials) if trial.user_attrs["round"] <= state.round]
        values = dict(past[-1].params) if past else values_in(self._config, self._space)
        current = Choice(
            values,
            "",
            loss_before=state.metrics.get(METRIC),
            private=bool(state.epsilon) or any(trial.user_attrs["private"] for trial in past),
        )
        if self._searcher is None:
            return self._by_real_rounds(state, current, past), []
        reason = reason_against(self._config.tuner, past, current.loss_before)
        if reason:
            return replace(current, why=reason), []
        return self._by_search(self._searcher, state, current, past)

    def _by_search(
        self, searcher: Searcher, state: Checkpoint, current: Choice, past: list[FrozenTrial]
    ) -> tuple[Choice, list[Candidate]]:
        """Compare candidates in virtual federations."""
        outcomes = outcomes_of(past, current.loss_before)
        rate = partial(correction, self._space, outcomes=outcomes, round=state.round + 1)
        is_first = not any(trial.user_attrs["searched"] for trial in past)
        found = searcher.compare(state, current.values, rate, _fixed(current), is_first=is_first)
        incumbent = found.candidates[0]
        best = best_of(found.candidates, incumbent)
        kept = best is incumbent
        choice = replace(
            current,
            values=best.values,
            why="no candidate was clearly better" if kept else "best of the virtual federations",
            searched=True,
            kept=kept,
            promised=best.gain - best.correction,
            passes=found.passes,
            num_candidates=len(found.candidates),
        )
        return choice, found.candidates

    def _by_real_rounds(
        self, state: Checkpoint, current: Choice, past: list[FrozenTrial]
    ) -> Choice:
        """Try one point more in the round itself; the first round takes the configured one."""
        told = [trial for trial in past if trial.value is not None]
        if not told:
            return replace(current, why="the configured values", searched=True, kept=False)
        best = max(told, key=lambda trial: trial.value or 0.0)
        patience = self._config.tuner.patience
        if patience and len(told) - 1 - told.index(best) >= patience:
            return replace(current, values=dict(best.params), why="best of the real rounds")
        points = self._proposer.points(told, 1, round=state.round + 1, fixed=_fixed(current))
        values = points[0] if points else current.values
        why = f"proposed by {self._config.tuner.sampler}"
        return replace(current, values=values, why=why, searched=True, kept=False, num_candidates=1)


_RECORDED = frozenset(Choice.__dataclass_fields__) - {"values"}


def _fixed(current: Choice) -> Values:
    """Return what must stay: devices planned their noise for what the first round asked."""
    keys = [key for key in PRIVATE_COST if key in current.values] if current.private else []
    return {key: current.values[key] for key in keys}


def _latest(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the last trial of each round, by round."""
    latest = {trial.user_attrs["round"]: trial for trial in trials}
    return [latest[round] for round in sorted(latest)]


def _gain(trial: FrozenTrial, state: Checkpoint) -> float | None:
    """Return by how much the logarithm of the gate set's loss fell in a trial's round."""
    told = state.metrics.get("tuner") or {}
    if told.get("trial") != trial.number or trial.user_attrs["round"] != state.round:
        return None
    before, after = trial.user_attrs["loss_before"], state.metrics.get(METRIC)
    if before is None or after is None or not state.metrics.get("applied"):
        return None
    return float(np.log(max(before, LOSS_FLOOR)) - math.log(max(after, LOSS_FLOOR)))
