"""Who is known to be asked, and what the malicious among them share."""

from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from aggregation.codecs import make_codec
from fedge.flower_internals import set_task_identity
from fedge.messages import EncodedUpdate, Refusal, WeightsRequest
from fedge.params import Layout
from fedge.settings import Hyperparameters
from simulation.attacks.collusion import Collusion
from simulation.nodes import FIRST_NODE_ID

LAYOUT = Layout(("w",), ((3,),))
REQUEST = WeightsRequest("run", 1, 2, LAYOUT, np.zeros(3, np.float32), Hyperparameters())


class Honest:
    """Sends its own number in every entry; client 3 cannot train."""

    def __init__(self, client: int) -> None:
        self.client = client
        self.num_trainings = 0

    def train(self, request: WeightsRequest) -> EncodedUpdate | Refusal:
        self.num_trainings += 1
        if self.client == 3:
            return Refusal("no-data", "")
        codec = make_codec("raw")
        delta = np.full(3, self.client, np.float32)
        encoded, _ = codec.encode(delta, codec.init(LAYOUT), np.random.default_rng(0))
        return EncodedUpdate(1, "", LAYOUT.digest, "raw", encoded.payload, 5.0)


def message(client: int, round: int, kind: str = "train") -> Message:
    set_task_identity(run_id=1, node_id=1)
    return Message(RecordDict(), FIRST_NODE_ID + client, kind, group_id=str(round))


def make_collusion(members: set[int]) -> tuple[Collusion, dict[int, Any]]:
    known: dict[int, Any] = {client: Honest(client) for client in range(6)}
    return Collusion(frozenset(members), known.__getitem__), known


def test_those_asked_in_the_round_share_what_they_would_have_sent() -> None:
    collusion, honest = make_collusion({1, 3, 4, 5})
    for client in (0, 1, 3, 4):
        collusion.overhear(message(client, 1))
    collusion.overhear(message(5, 1, "evaluate"))
    collusion.overhear(message(4, 1))  # asked again, with whole weights
    assert collusion.num_asked == 4
    deltas = collusion.honest_deltas(REQUEST)
    np.testing.assert_array_equal(deltas, [[1, 1, 1], [4, 4, 4]])
    assert collusion.honest_deltas(REQUEST) is deltas
    assert [honest[client].num_trainings for client in range(6)] == [0, 1, 0, 1, 1, 0]


def test_a_new_round_begins_anew() -> None:
    collusion, _ = make_collusion({1, 4})
    for client in (1, 4):
        collusion.overhear(message(client, 1))
    assert len(collusion.honest_deltas(REQUEST)) == 2
    collusion.overhear(message(4, 2))
    assert collusion.num_asked == 1
    np.testing.assert_array_equal(collusion.honest_deltas(REQUEST), [[4, 4, 4]])
