"""A client that answers with a forged update."""

from __future__ import annotations

from dataclasses import replace

from aggregation.codecs import make_codec
from edge_client.participant import Participant
from fedge.messages import DeltaRequest, EncodedUpdate, Evaluation, Refusal, WeightsRequest
from fedge.rng import stream
from simulation.attacks.collusion import Collusion, decoded_delta
from simulation.attacks.contracts import Scene, UpdateAttack


class MaliciousClient:
    """Trains as the honest client it might have been, then sends something else.

    Args:
        client: which one, from 0.
        honest: trains, and keeps its ledger like any other.
        attack: forges the update.
        collusion: what it shares with the other malicious clients.
        seed: of the simulation.
    """

    def __init__(
        self,
        client: int,
        honest: Participant,
        attack: UpdateAttack,
        collusion: Collusion,
        *,
        seed: int,
    ) -> None:
        self._client = client
        self._honest = honest
        self._attack = attack
        self._collusion = collusion
        self._seed = seed

    def train(self, request: WeightsRequest | DeltaRequest) -> EncodedUpdate | Refusal:
        """Answer with a forged update; one that cannot train says so and attacks nobody."""
        answer = self._honest.train(request)
        if isinstance(answer, Refusal):
            return answer
        rng = stream(self._seed, "attack", round=request.round, client=self._client)
        colluding = self._collusion.honest_deltas(request)
        forged = self._attack.forge(
            Scene(
                honest=decoded_delta(answer, request),
                num_examples=answer.num_examples,
                colluding=colluding,
                num_asked=self._collusion.num_asked,
                rng=rng,
            )
        )
        codec = make_codec(answer.codec)
        encoded, _ = codec.encode(forged.delta, codec.init(request.layout), rng)
        return replace(answer, payload=encoded.payload, num_examples=forged.num_examples)

    def evaluate(self, request: WeightsRequest | DeltaRequest) -> Evaluation | Refusal:
        """Answer honestly: an evaluation changes no model."""
        return self._honest.evaluate(request)
