"""A search before a round: generations of candidates, each proposed by what the others told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.checkpoint import Checkpoint
from server.settings import ServerConfig
from server.tuner.federation import VirtualFederation
from server.tuner.proposals import Proposer
from server.tuner.pruners import PRUNERS
from server.tuner.readouts import READOUTS
from server.tuner.search import Candidate, search
from server.tuner.space import Values, apply_values
from server.tuner.study import StudyLog


@dataclass(frozen=True)
class Found:
    """What a search brought.

    Attributes:
        candidates: all that were tried, the values in use first.
        passes: examples that went through the model.
    """

    candidates: list[Candidate]
    passes: int


class Searcher:
    """Compares candidates in virtual federations.

    Args:
        config: of the server.
        proposer: where points come from.
        federation: where they are tried.
        study: what earlier searches told.
    """

    def __init__(
        self,
        config: ServerConfig,
        proposer: Proposer,
        federation: VirtualFederation,
        study: StudyLog,
    ) -> None:
        self._config = config
        self._proposer = proposer
        self._federation = federation
        self._study = study

    def compare(
        self,
        state: Checkpoint,
        current: Values,
        rate: Callable[[Values], float],
        fixed: Values,
        *,
        is_first: bool,
    ) -> Found:
        """Try the values in use and others from a state.

        Args:
            state: where all begin.
            current: the values in use.
            rate: returns what real rounds say of a point, to be added to its gain.
            fixed: values that are not to be changed.
            is_first: whether to search the whole space, in all generations; else one generation
                in the neighbourhood of the values in use.
        """
        began = self._federation.passes
        near = None if is_first else current
        candidates = [Candidate(current, proposed=False, correction=rate(current))]
        for generation, size in enumerate(self._sizes(is_first)):
            # The first generation is told nothing of the values in use, which are not tried yet.
            told = self._study.trials_of(state.round + 1, candidates) if generation else []
            seen = [*self._study.candidates(), *told]
            points = self._proposer.points(
                seen, size, round=state.round + 1, generation=generation, near=near, fixed=fixed
            )
            tried = [each.values for each in candidates]
            new = [Candidate(each, True, rate(each)) for each in points if each not in tried]
            self._try(state, new if generation else [*candidates, *new])
            candidates += new
        return Found(candidates, self._federation.passes - began)

    def _sizes(self, is_first: bool) -> list[int]:
        """Return how many points each generation proposes."""
        wanted = self._config.tuner
        half = wanted.candidates // 2
        if not is_first:
            return [half]
        return [wanted.candidates - 1] + [half] * (wanted.generations - 1)

    def _try(self, state: Checkpoint, candidates: list[Candidate]) -> None:
        if not candidates:
            return
        wanted = self._config.tuner
        search(
            self._federation,
            state,
            candidates,
            [apply_values(self._config, each.values) for each in candidates],
            num_rounds=wanted.virtual_rounds,
            pruner=PRUNERS[wanted.pruner],
            readout=READOUTS[wanted.readout],
        )
