"""One device's part in a round: plan, reserve, train, settle, encode, keep, answer.

The daemon, ``flwr run .`` and the simulation all use this class; they differ in who works
(`Worker`), who remembers (`Ledger`, `ReplyStore`) and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aggregation.codecs import make_codec
from aggregation.contracts import Codec
from edge_client.held_weights import HeldWeights
from edge_client.ledger import TRAIN, Ledger
from edge_client.replies import ReplyStore
from edge_client.round_memory import RoundMemory, encode_round, part_of, recall, start_of
from edge_client.scaffold import correction_for
from edge_client.worker import Ask, Proposal, Trained, Worker
from fedge.errors import (
    BudgetExhausted,
    ConfigError,
    OutOfMemory,
    PrivacyError,
    TaskError,
    TrainingPaused,
)
from fedge.messages import (
    DeltaRequest,
    EncodedUpdate,
    Evaluation,
    Refusal,
    RoundKey,
    WeightsRequest,
)
from fedge.params import Vector
from fedge.settings import PrivacyConfig

# ε of many small spends and of one large spend differ in the last digits of a float.
_ROUNDING = 1e-9

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRound:
    """What the device notes about a round it trained; it stays on the device.

    Attributes:
        epsilon: ε spent in all after this round; None without DP.
        finished_at: Unix seconds.
    """

    run: str
    round: int
    train_seconds: float
    num_steps: int
    epsilon: float | None
    finished_at: float


@dataclass(frozen=True, eq=False)
class Begun:
    """A round that was planned and reserved, and is to be trained.

    Attributes:
        correction: SCAFFOLD's server control less this device's; None is zero.
        start: what training starts from where some layers are personal; None is the global
            weights.
        reservation: the ledger's number for it; None without DP.
    """

    request: WeightsRequest
    key: RoundKey
    codec: Codec[Any]
    proposal: Proposal
    memory: RoundMemory
    correction: Vector | None
    start: Vector | None
    reservation: int | None


class Participant:
    """Answers the server's requests.

    Args:
        worker: plans, trains and evaluates.
        ledger: what was spent.
        replies: the last answers, and what the next round must remember of them.
        privacy: what this device insists on, whatever the server says.
        held: global models kept in memory for a lossy downlink; None keeps none.
        journal: told about each trained round.
        rng: makes the randomness of one encoding.
    """

    def __init__(
        self,
        worker: Worker,
        ledger: Ledger,
        replies: ReplyStore,
        privacy: PrivacyConfig,
        *,
        held: HeldWeights | None = None,
        journal: Callable[[TrainedRound], None] | None = None,
        rng: Callable[[], np.random.Generator] = np.random.default_rng,
    ) -> None:
        self._worker = worker
        self._ledger = ledger
        self._replies = replies
        self._privacy = privacy
        self._held = held
        self._journal = journal
        self._rng = rng
        self._lock = threading.Lock()
        self._too_large: dict[tuple[str, str], str] = {}
        self.problem = ""

    def train(self, request: WeightsRequest | DeltaRequest) -> EncodedUpdate | Refusal:
        """Answer a train request; the same request again gets the same bytes and costs nothing.

        Raises:
            PrivacyError: the ledger cannot be written; nothing was spent.
            TransportError: the training process failed; what was reserved stays reserved.
        """
        with self._lock:
            key = request.key
            whole = self._complete(request)
            if self._held is not None and isinstance(whole, WeightsRequest):
                self._held.keep(whole, key.parent)
            stored = self._replies.get(key)
            if stored is not None:
                return self._with_hint(stored, key)
            if isinstance(whole, Refusal):
                return whole
            answer = self._answer(whole, key)
            self.problem = answer.detail if isinstance(answer, Refusal) else ""
            return answer

    def evaluate(self, request: WeightsRequest | DeltaRequest) -> Evaluation | Refusal:
        """Answer an evaluate request.

        Under DP it is refused: metrics of a small holdout, noised enough to be private, say
        next to nothing, and would still cost budget.
        """
        if self._privacy.enabled:
            return Refusal("private", "this device trains under DP and keeps its metrics home")
        with self._lock:
            whole = self._complete(request)
            if isinstance(whole, Refusal):
                return whole
            try:
                weights = self.own_weights(whole)
                evaluation = self._worker.evaluate(whole.layout.digest, weights)
            except TaskError as error:
                return Refusal("task", str(error))
        return evaluation or Refusal("no-data", "this device has no labelled holdout samples")

    def _complete(self, request: WeightsRequest | DeltaRequest) -> WeightsRequest | Refusal:
        return (self._held or HeldWeights()).complete(request)

    def _with_hint(self, update: EncodedUpdate, key: RoundKey) -> EncodedUpdate:
        """Say what is in memory now; a stored reply cannot know."""
        holds = self._held is not None and self._held.holds(key.run_name, key.parent)
        return replace(update, holds_parent=holds)

    def own_weights(self, request: WeightsRequest) -> Vector:
        """Return the request's weights with this device's personal part in them.

        Raises:
            TaskError: the personal layers that the server names are not those of a model.
        """
        if not request.hyper.personal_layers:
            return request.weights
        memory = recall(self._replies.state(request.run_name), request)
        start = start_of(memory, request)
        return request.weights if start is None else start

    def begin(self, request: WeightsRequest, key: RoundKey) -> Begun | Refusal:
        """Plan a round and reserve what it will cost; nothing is trained yet.

        Args:
            request: what is asked.
            key: of the request, which takes a while to compute twice.
        """
        try:
            codec = make_codec(request.codec)
        except ConfigError as error:
            return Refusal("codec", str(error))
        if _size_of(request) in self._too_large:  # it would spend as much and fail again
            return Refusal("memory", self._too_large[_size_of(request)])
        try:
            part_of(request)  # before anything is spent
            proposal = self._propose(request)
            if proposal.num_examples < 1:
                return Refusal("no-data", "this device has no labelled samples to train on yet")
            memory = recall(self._replies.state(request.run_name), request)
            correction = correction_for(request, memory.control)
            number = self._reserve(key, proposal)
        except TaskError as error:
            return Refusal("task", str(error))
        except BudgetExhausted as error:
            return Refusal("budget", str(error))
        except TrainingPaused as error:
            return Refusal("paused", str(error))
        except OutOfMemory as error:
            return Refusal("memory", str(error))
        start = start_of(memory, request)
        return Begun(request, key, codec, proposal, memory, correction, start, number)

    def finish(self, begun: Begun, trained: Trained) -> EncodedUpdate:
        """Settle, encode and keep the reply of a round that was trained."""
        request, proposal = begun.request, begun.proposal
        if begun.reservation is not None:
            self._ledger.settle(begun.reservation)
        public = trained
        if proposal.plan is not None:
            # How many steps were taken before a stop depends on time, and so on the data.
            public = replace(trained, num_steps=proposal.plan.num_steps)
        encoded, memory = encode_round(begun.memory, begun.codec, request, public, self._rng())
        update = EncodedUpdate(
            round=request.round,
            parent=begun.key.parent,
            layout_digest=request.layout.digest,
            codec=request.codec,
            payload=encoded.payload,
            num_examples=proposal.num_examples,
            epsilon=None if proposal.plan is None else proposal.epsilon_after,
            num_steps=float(public.num_steps),
            distortion=encoded.distortion,
        )
        self._replies.put(begun.key, update, memory.to_memory())
        self._note(request, trained, update.epsilon)
        return update

    def _answer(self, request: WeightsRequest, key: RoundKey) -> EncodedUpdate | Refusal:
        begun = self.begin(request, key)
        if isinstance(begun, Refusal):
            return begun
        try:
            trained = self._worker.train(
                request.layout.digest,
                request.weights if begun.start is None else begun.start,
                request.hyper,
                begun.proposal.plan,
                begun.correction,
                round_id=str(key),
            )
        except TaskError as error:
            return Refusal("task", str(error))
        except OutOfMemory as error:
            self._too_large[_size_of(request)] = str(error)
            return Refusal("memory", str(error))
        return self._with_hint(self.finish(begun, trained), key)

    def _propose(self, request: WeightsRequest) -> Proposal:
        fixed = self._ledger.noise_multiplier(request.run_name) if self._privacy.enabled else None
        if self._privacy.noise_multiplier > 0:
            fixed = None  # the configuration fixes it, and may have changed since
        proposal = self._worker.propose(
            Ask(
                layout_digest=request.layout.digest,
                hyper=request.hyper,
                privacy=self._privacy,
                num_rounds_left=max(1, request.num_rounds - request.round + 1),
                spent=self._ledger.spends(TRAIN),
                noise_multiplier=fixed,
            )
        )
        if self._privacy.enabled and proposal.num_examples >= 1 and proposal.plan is None:
            raise PrivacyError("the worker proposed to train without DP although DP is on")
        return proposal

    def _reserve(self, key: RoundKey, proposal: Proposal) -> int | None:
        """Write down what the round will cost; return its number, None without DP."""
        plan, budget = proposal.plan, self._privacy.epsilon
        if plan is None:
            return None
        if proposal.epsilon_after > budget * (1 + _ROUNDING):
            raise BudgetExhausted(
                spent=proposal.epsilon_before, needed=proposal.epsilon_after, budget=budget
            )
        if self._ledger.noise_multiplier(key.run_name) is None:
            self._ledger.fix_noise_multiplier(key.run_name, plan.noise_multiplier)
        return self._ledger.reserve(
            key,
            plan.spend,
            partition=TRAIN,
            epsilon=proposal.epsilon_after,
            delta=plan.delta,
        )

    def _note(self, request: WeightsRequest, trained: Trained, epsilon: float | None) -> None:
        _log.info(
            "run %s, round %d: trained %d steps in %.2f s%s",
            request.run_name,
            request.round,
            trained.num_steps,
            trained.seconds,
            "" if epsilon is None else f", ε is now {epsilon:.3f} of {self._privacy.epsilon:g}",
        )
        if self._journal is not None:
            self._journal(
                TrainedRound(
                    run=request.run_name,
                    round=request.round,
                    train_seconds=trained.seconds,
                    num_steps=trained.num_steps,
                    epsilon=epsilon,
                    finished_at=time.time(),
                )
            )


def _size_of(request: WeightsRequest) -> tuple[str, str]:
    """Return what decides how much memory a training takes."""
    return request.layout.digest, request.hyper.digest
