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
from fedge.params import Layout
from server.broadcast import Broadcast
from server.events import EventLog
from server.uplink_cost import UplinkCost

log = logging.getLogger(__name__)

NO_BUDGET = "budget"
LOST_BASE = "stale-base"
# Flower's error codes are not part of its public API; these are those of flwr 1.41.
_ERROR_REASONS = {3: "expired", 4: "expired", 5: "node-offline"}
CLIENT_ERROR = "client-error"
CLIENT_APP_ERROR = 2  # flwr's code for an exception in a ClientApp


def error_reason(error: Error) -> str:
    """Return the key that a Flower error is counted by."""
    return _ERROR_REASONS.get(error.code, CLIENT_ERROR)


class ClientErrors:
    """Tracebacks of clients: the first one of a run is shown in full, the others are counted."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._shown = False

    def note(self, node: int, error: Error) -> None:
        """Show the first error that a client itself raised."""
        if error_reason(error) == CLIENT_ERROR:
            self.show(node, error.reason or "no reason given", error.code)

    def show(self, node: int, text: str, code: int = CLIENT_APP_ERROR) -> None:
        """Show what a client that failed said, if it is the first one."""
        if self._shown:
            return
        self._shown = True
        text = text[-4000:]
        log.error("node %d failed; further failures are only counted. It said:\n%s", node, text)
        self._events.append(CLIENT_ERROR, node=node, code=code, detail=text)


class RoundIntake:
    """Everything one round knows of its replies.

    Args:
        layout: of the global model.
        broadcast: what the round's devices train from; learns here what they hold.
        codec: spec of the codec that devices were asked for.
        round: the open round.
        gate: opened for this round here.
        errors: where clients' tracebacks go.

    Attributes:
        num_accepted: updates that were added; num_stale: those of them that were late.
        cost: what the encoding of the added updates cost.
        lost_base: nodes that could not use a delta and have not been sent whole weights yet.
        refused: replies that were not, by reason.
        epsilon: ε spent by node, as said in this round.
        exhausted: nodes that said they have no privacy budget left.
    """

    def __init__(
        self,
        layout: Layout,
        broadcast: Broadcast,
        codec: str,
        round: int,
        gate: UpdateGate,
        errors: ClientErrors,
    ) -> None:
        self.num_accepted = 0
        self.num_stale = 0
        self.refused: Counter[str] = Counter()
        self.epsilon: dict[int, float] = {}
        self.exhausted: set[int] = set()
        self.cost = UplinkCost(layout)
        self.lost_base: list[int] = []
        self._sent_whole: set[int] = set()
        self._round = round
        self._layout = layout
        self._broadcast = broadcast
        self._allowed = frozenset({codec, "raw"})
        self._gate = gate
        self._errors = errors
        gate.open_round(round, broadcast.parent)

    @property
    def num_fresh(self) -> int:
        """Updates of the open round itself that were added."""
        return self.num_accepted - self.num_stale

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
            self.num_stale += update.discount < 1

    def _admit(self, node: int, message: Message) -> ClientUpdate | None:
        reply = decode_reply(message.content, self._layout)
        if isinstance(reply, Refusal):
            self._note_refusal(node, reply)
            return None
        if isinstance(reply, FullWeights):
            return self._admit_weights(node, reply, message.metadata.group_id)
        self._note_epsilon(node, reply)
        if reply.holds_parent and reply.parent == self._broadcast.parent:
            self._broadcast.note_holds(node, reply.parent)
        delta = decode_payload(reply.codec, reply.payload, self._layout, self._allowed)
        update = self._gate.admit(
            node,
            delta,
            reply.num_examples,
            round=reply.round,
            parent=reply.parent,
            layout_digest=reply.layout_digest,
            num_steps=reply.num_steps,
        )
        self.cost.add(reply)
        return update

    def _admit_weights(self, node: int, reply: FullWeights, group: str) -> ClientUpdate:
        # A stock client names neither round nor parent; that it answers this round's message
        # binds it to both.
        if group != str(self._round):
            raise UpdateRejected("round", expected=self._round, got=f"{group:.20}")
        if self._gate.needs_steps:
            raise UpdateRejected("steps", expected="a number of local steps", got="whole weights")
        delta = reply.weights
        delta -= self._broadcast.weights
        return self._gate.admit(
            node,
            delta,
            reply.num_examples,
            round=self._round,
            parent=self._broadcast.parent,
            layout_digest=None,
        )

    def _note_refusal(self, node: int, refusal: Refusal) -> None:
        # Once a node: else one that always asks for more gets the model again and again.
        if refusal.reason == LOST_BASE and node not in self._sent_whole:
            self._sent_whole.add(node)
            self._broadcast.forget(node)
            self.lost_base.append(node)
            log.info("node %d lost the version it held; it gets whole weights", node)
            return
        self.refused[refusal.reason[:40]] += 1
        if refusal.reason == NO_BUDGET:
            self.exhausted.add(node)
        log.info("node %d declines (%s): %.200s", node, refusal.reason, refusal.detail)

    def _note_epsilon(self, node: int, update: EncodedUpdate) -> None:
        epsilon = update.epsilon
        if epsilon is not None and math.isfinite(epsilon) and epsilon >= 0:
            self.epsilon[node] = epsilon
