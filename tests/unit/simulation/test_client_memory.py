from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.stored_reply import encode_stored_reply
from fedge.config import build
from fedge.messages import EncodedUpdate, RoundKey, WeightsRequest
from fedge.params import Layout
from fedge.training.local import LocalTrainer
from simulation.client_memory import ClientReplies
from simulation.clients import SimulatedClient
from simulation.settings import SimulateConfig
from tests.tiny_task import TinyTask

LAYOUT = Layout(("w",), ((3,),))


def key_of(round: int) -> RoundKey:
    return RoundKey("run", round, "parent", "hyper", "topk:0.5")


def update_of(round: int) -> EncodedUpdate:
    return EncodedUpdate(round, "parent", LAYOUT.digest, "topk:0.5", b"payload", 8.0)


def state_of(round: int) -> dict[str, Any]:
    return {"residual": np.full(3, round, np.float32)}


def opened(folder: Path, last_committed: int) -> ClientReplies:
    return ClientReplies(folder, 1, last_committed=last_committed)


def remembered(replies: ClientReplies) -> float | None:
    state = replies.state("run")
    return float(state["residual"][0]) if state else None


def test_rounds_that_were_not_committed_are_forgotten(tmp_path: Path) -> None:
    first = opened(tmp_path, 0)
    for round in (1, 2, 3):
        first.put(key_of(round), update_of(round), state_of(round))
    assert first.get(key_of(3)) == update_of(3)
    resumed = opened(tmp_path, 2)
    assert resumed.get(key_of(3)) is None
    assert remembered(resumed) == 2.0
    assert remembered(opened(tmp_path, 3)) == 2.0  # what was forgotten does not come back


def test_a_run_that_starts_over_remembers_nothing(tmp_path: Path) -> None:
    opened(tmp_path, 0).put(key_of(1), update_of(1), state_of(1))
    assert remembered(opened(tmp_path, 0)) is None
    assert list(tmp_path.iterdir()) == []


def test_two_rounds_stay_on_disk_and_other_clients_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "11-1.reply"
    other.write_bytes(encode_stored_reply(key_of(1), update_of(1), state_of(1)))
    replies = opened(tmp_path, 0)
    for round in (1, 9, 10):
        replies.put(key_of(round), update_of(round), state_of(round))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1-10.reply",
        "1-9.reply",
        "11-1.reply",
    ]


def test_what_needs_no_memory_is_not_written(tmp_path: Path) -> None:
    replies = opened(tmp_path / "clients", 0)
    replies.put(key_of(1), update_of(1), {})
    assert replies.get(key_of(1)) == update_of(1)
    assert not (tmp_path / "clients").exists()


@dataclass(frozen=True)
class Run:
    """Requests of one run, round by round, to client 1."""

    config: SimulateConfig
    requests: list[WeightsRequest]

    def client(self, last_committed: int = 0) -> SimulatedClient:
        return SimulatedClient(self.config, TinyTask(), 1, last_committed=last_committed)

    def update(self, client: SimulatedClient, round: int) -> EncodedUpdate:
        answer = client.train(self.requests[round - 1])
        assert isinstance(answer, EncodedUpdate)
        return answer


def make_run(run_dir: Path, codec: str, private: bool) -> Run:
    config = build(
        SimulateConfig,
        {
            "num_clients": 3,
            "server": {"run_dir": str(run_dir), "seed": 5},
            "privacy": {"enabled": private},
        },
    )
    trainer = LocalTrainer(TinyTask())
    hyper = replace(config.server.train, client_term="scaffold", learning_rate=0.1, batch_size=4)
    requests = [
        WeightsRequest("run", r, 4, trainer.layout, trainer.initial_weights(r), hyper, codec=codec)
        for r in range(1, 5)
    ]
    return Run(config, requests)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("codec", ["topk:0.3+int8", "int8"])
def test_a_client_that_was_cut_off_goes_on_as_if_it_had_not_been(
    tmp_path: Path, codec: str, private: bool
) -> None:
    steady = make_run(tmp_path / "steady", codec, private)
    client = steady.client()
    expected = [steady.update(client, round) for round in (1, 2, 3, 4)]
    assert len({update.payload for update in expected}) == 4
    cut = make_run(tmp_path / "cut", codec, private)
    first = cut.client()
    assert [cut.update(first, round) for round in (1, 2, 3)] == expected[:3]
    resumed = cut.client(last_committed=2)  # round 3 was answered and never committed
    assert [cut.update(resumed, round) for round in (3, 4)] == expected[2:]


def test_what_was_given_up_does_not_come_back_from_an_older_round(tmp_path: Path) -> None:
    first = opened(tmp_path, 0)
    first.put(key_of(1), update_of(1), state_of(1))
    first.put(key_of(2), update_of(2), {})
    assert remembered(first) is None
    assert remembered(opened(tmp_path, 2)) is None
    assert remembered(opened(tmp_path, 1)) == 1.0
