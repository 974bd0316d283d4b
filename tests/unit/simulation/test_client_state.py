"""What a simulated client carries from round to round, and what a resumed run makes of it."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregation.contracts import Memory
from edge_client.ledger import TRAIN
from fedge.config import build
from fedge.errors import StoreError
from fedge.messages import EncodedUpdate, RoundKey, WeightsRequest
from fedge.params import Layout
from fedge.privacy.accounting import Spend
from fedge.training.local import LocalTrainer
from simulation.client_state import ClientState
from simulation.clients import ClientData, SimulatedClient
from simulation.settings import SimulateConfig
from simulation.state_store import StateStore, StoredState
from tests.tiny_task import TinyTask

LAYOUT = Layout(("w",), ((3,),))


def key_of(round: int) -> RoundKey:
    return RoundKey("run", round, "parent", "hyper", "topk:0.5")


def update_of(round: int) -> EncodedUpdate:
    return EncodedUpdate(round, "parent", LAYOUT.digest, "topk:0.5", b"payload", 8.0)


def memory_of(round: int) -> Memory:
    return {"residual": np.full(3, round, np.float32)}


def remembered(state: ClientState, run_name: str = "run") -> float | None:
    memory = state.state(run_name)
    return float(memory["residual"][0]) if memory else None


def reserve(state: ClientState, round: int) -> None:
    state.ledger.reserve(
        key_of(round), Spend(1.0, 0.1, 10), partition=TRAIN, epsilon=0.5, delta=1e-5
    )


def test_a_new_client_has_nothing_to_store() -> None:
    state = ClientState(1)
    assert remembered(state) is None
    assert state.ledger.account() is None
    assert state.to_stored() is None


def test_what_was_stored_is_what_the_next_round_begins_with() -> None:
    first = ClientState(1)
    reserve(first, 1)
    first.put(key_of(1), update_of(1), memory_of(1))
    stored = first.to_stored()
    assert stored is not None
    second = ClientState(1, stored)
    assert remembered(second) == 1.0
    assert second.ledger.entries == first.ledger.entries
    assert second.to_stored() == stored
    assert remembered(second, "another run") is None


def test_the_last_reply_is_kept_while_the_client_lives_and_not_stored() -> None:
    state = ClientState(1)
    state.put(key_of(1), update_of(1), memory_of(1))
    assert state.get(key_of(1)) == update_of(1)
    assert state.get(key_of(2)) is None
    stored = state.to_stored()
    assert stored is not None
    assert b"payload" not in stored.memory.partition(b"\n")[2].partition(b"\n")[2]
    assert ClientState(1, stored).get(key_of(1)) is None


def test_a_reply_without_memory_leaves_nothing_to_store() -> None:
    state = ClientState(1)
    state.put(key_of(1), update_of(1), {})
    assert state.get(key_of(1)) == update_of(1)
    assert state.to_stored() is None


@pytest.mark.parametrize("lives_on", [True, False])
def test_what_was_given_up_is_overwritten(lives_on: bool) -> None:
    state = ClientState(1)
    state.put(key_of(1), update_of(1), memory_of(1))
    stored = state.to_stored()
    if not lives_on:
        state = ClientState(1, stored)
    state.put(key_of(2), update_of(2), {})
    assert state.to_stored() == StoredState()


@pytest.mark.parametrize(
    ("stored", "what"),
    [(StoredState(memory=b"no memory"), "client 4"), (StoredState("{"), "ledger of client 4")],
)
def test_what_is_damaged_names_the_client(stored: StoredState, what: str) -> None:
    with pytest.raises(StoreError, match=what):
        ClientState(4, stored).state("run")


@dataclass
class Run:
    """Requests of one run, round by round, to client 1."""

    config: SimulateConfig
    requests: list[WeightsRequest]
    task: TinyTask = field(default_factory=TinyTask)
    stack: ExitStack = field(default_factory=ExitStack)

    def client(self, last_committed: int = 0) -> SimulatedClient:
        path = self.config.server.run_dir / "clients.db"
        store = StateStore(path, last_committed=last_committed, limit_bytes=1 << 20)
        self.stack.enter_context(closing(store))
        data = ClientData(self.config, self.task)
        return SimulatedClient(self.config, self.task, 1, data=data, store=store)

    def update(self, client: SimulatedClient, round: int) -> EncodedUpdate:
        answer = client.train(self.requests[round - 1])
        assert isinstance(answer, EncodedUpdate)
        return answer


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def make_run(run_dir: Path, stack: ExitStack, codec: str, private: bool) -> Run:
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
    return Run(config, requests, stack=stack)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("codec", ["topk:0.3+int8", "int8"])
def test_a_client_that_was_cut_off_goes_on_as_if_it_had_not_been(
    tmp_path: Path, stack: ExitStack, codec: str, private: bool
) -> None:
    steady = make_run(tmp_path / "steady", stack, codec, private)
    client = steady.client()
    expected = [steady.update(client, round) for round in (1, 2, 3, 4)]
    assert len({update.payload for update in expected}) == 4
    cut = make_run(tmp_path / "cut", stack, codec, private)
    first = cut.client()
    assert [cut.update(first, round) for round in (1, 2, 3)] == expected[:3]
    resumed = cut.client(last_committed=2)  # round 3 was answered and never committed
    assert [cut.update(resumed, round) for round in (3, 4)] == expected[2:]


def test_what_a_training_that_failed_had_reserved_is_still_spent_after_a_resume(
    tmp_path: Path, stack: ExitStack
) -> None:
    broken: Any = replace(make_run(tmp_path, stack, "raw", private=True), task=TinyTask(bug=True))
    with pytest.raises(RuntimeError, match="no such thing"):
        broken.client().train(broken.requests[0])
    resumed = broken.client(last_committed=1)
    assert resumed._ledger.account() is not None
