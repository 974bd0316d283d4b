"""What the malicious clients of a round share: who was asked, and their honest updates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MessageType

from aggregation.codecs import make_codec
from edge_client.participant import Participant
from fedge.messages import DeltaRequest, EncodedUpdate, Refusal, WeightsRequest
from fedge.params import Vector
from fedge.rng import stream
from simulation.attacks.methods import NO_ATTACK
from simulation.nodes import client_of
from simulation.settings import SimulateConfig


class Collusion:
    """The malicious clients as one party.

    Before the first of them answers, all that were asked in the round train honestly; what they
    would have sent is kept until the next round.

    Args:
        members: the malicious clients.
        honest: returns the participant that a member would be if it were honest.
    """

    def __init__(self, members: frozenset[int], honest: Callable[[int], Participant]) -> None:
        self._members = members
        self._honest = honest
        self._round = ""
        self._asked: dict[int, None] = {}  # an ordered set: a client may be asked again
        self._deltas: npt.NDArray[np.float32] | None = None

    @property
    def num_asked(self) -> int:
        """Clients asked in this round, honest ones included."""
        return len(self._asked)

    def overhear(self, message: Message) -> None:
        """Note who is asked to train in which round."""
        meta = message.metadata
        if meta.message_type != MessageType.TRAIN:
            return
        if meta.group_id != self._round:
            self._round, self._asked, self._deltas = meta.group_id, {}, None
        self._asked[client_of(meta.dst_node_id)] = None

    def honest_deltas(self, request: WeightsRequest | DeltaRequest) -> npt.NDArray[np.float32]:
        """Return the deltas of those members asked in this round that can train, ``[M, D]``."""
        if self._deltas is None:
            answers = (
                self._honest(client).train(request)
                for client in self._asked
                if client in self._members
            )
            deltas = [
                decoded_delta(answer, request)
                for answer in answers
                if not isinstance(answer, Refusal)
            ]
            self._deltas = np.stack(deltas)
        return self._deltas


def decoded_delta(answer: EncodedUpdate, request: WeightsRequest | DeltaRequest) -> Vector:
    """Return the delta that the server would have decoded."""
    return make_codec(answer.codec).decode(answer.payload, request.layout)


def draw_members(config: SimulateConfig) -> frozenset[int]:
    """Return which clients are malicious; the seed decides."""
    if config.attack.name == NO_ATTACK:
        return frozenset()
    num_members = round(config.attack.fraction * config.num_clients)
    rng = stream(config.server.seed, "malicious")
    return frozenset(rng.choice(config.num_clients, num_members, replace=False).tolist())
