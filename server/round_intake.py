"""One round's replies: decoded, checked, added up and forgotten, whoever sent them."""

from __future__ import annotations

import logging
import math
from collections import Counter

from flwr.app import Error, Message

from aggregation.codecs import decode_payload
from aggregation.cohort import RoundAggregate
from aggregation.contracts import ClientUpdate
from aggregation.gate import UpdateGate
from fedge.errors import UpdateRejected
from fedge.messages import EncodedUpdate, FullWeights, Refusal, decode_reply
from server.checkpoint import Checkpoint
from server.events import EventLog

log = logging.getLogger(__name__)

NO_BUDGET = "budget"
# Flower's error codes are not part of its public API; these are those of flwr 1.41.
_ERROR_REASONS = {3: "expired", 4: "expired", 5: "node-offline"}
_CLIENT_ERROR = "client-error"


def error_reason(error: Error) -> str:
    """Return the key that a Flower error is counted by."""
    return _ERROR_REASONS.get(error.code, _CLIENT_ERROR)


class ClientErrors:
    """Tracebacks of clients: the first one of a run is shown in full, the others are counted."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._shown = False

    def note(self, node: int, error: Error) -> None:
        """Show the first error that a client itself raised."""
        if self._shown or error_reason(error) != _CLIENT_ERROR:
            return
        self._shown = True
        text = (error.reason or "no reason given")[-4000:]
        log.error("node %d failed; further failures are only counted. It said:\n%s", node, text)
        self._events.append(_CLIENT_ERROR, node=node, code=error.code, detail=text)


class RoundIntake:
    """Everything one round knows of its replies.

    Args:
        state: the last committed checkpoint, which the updates start from.
        round: the open round.
        gate: opened for this round here.
        errors: where clients' tracebacks go.

    Attributes:
        num_accepted: updates that were added.
        refused: replies that were not, by reason.
        epsilon: ε spent by node, as said in this round.
        exhausted: nodes that said they have no privacy budget left.
    """

    def __init__(
        self, state: Checkpoint, round: int, gate: UpdateGate, errors: ClientErrors
    ) -> None:
        self.num_accepted = 0
        self.refused: Counter[str] = Counter()
        self.epsilon: dict[int, float] = {}
        self.exhausted: set[int] = set()
        self._round = round
        self._layout = state.layout
        self._weights = state.weights
        self._parent = state.digest
        self._gate = gate
        self._errors = errors
        gate.open_round(round, self._parent)

    def take(self, message: Message, aggregate: RoundAggregate) -> None:
        """Add a reply's update, or count why not; no reply can do more harm than that.

        Raises:
            AggregationError: the update cannot be kept (disk full).
        """
        node = message.metadata.src_node_id
        if message.has_error():
            self.refused[error_reason(message.error)] += 1
            self._errors.note(node, message.error)
            return
        try:
            update = self._admit(node, message)
        except UpdateRejected as error:
            self.refused[error.reason] += 1
            log.warning("%s", error.located(client=node, round=self._round))
            return
        except Exception as error:  # isolates a reply that is broken in a way nobody foresaw
            self.refused["malformed"] += 1
            log.warning("node %d sent a malformed reply: %r", node, error)
            return
        if update is not None:
            aggregate.add(update)
            self.num_accepted += 1

    def _admit(self, node: int, message: Message) -> ClientUpdate | None:
        reply = decode_reply(message.content, self._layout)
        if isinstance(reply, Refusal):
            self._note_refusal(node, reply)
            return None
        if isinstance(reply, FullWeights):
            # A stock client names no parent; that it answers this round's message binds it.
            delta, claim, parent, digest = reply.weights, self._round, self._parent, None
            delta -= self._weights
        else:
            self._note_epsilon(node, reply)
            delta = decode_payload(reply.codec, reply.payload, self._layout)
            claim, parent, digest = reply.round, reply.parent, reply.layout_digest
        return self._gate.admit(
            node, delta, reply.num_examples, round=claim, parent=parent, layout_digest=digest
        )

    def _note_refusal(self, node: int, refusal: Refusal) -> None:
        self.refused[refusal.reason[:40]] += 1
        if refusal.reason == NO_BUDGET:
            self.exhausted.add(node)
        log.info("node %d declines (%s): %.200s", node, refusal.reason, refusal.detail)

    def _note_epsilon(self, node: int, update: EncodedUpdate) -> None:
        epsilon = update.epsilon
        if epsilon is not None and math.isfinite(epsilon) and epsilon >= 0:
            self.epsilon[node] = epsilon
