"""A participant's personal part: kept from round to round, and never in what is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregation.codecs import make_codec
from edge_client.ledger import MemoryLedger
from edge_client.participant import Participant
from edge_client.replies import FileReplyStore, MemoryReplyStore, ReplyStore
from edge_client.worker import Ask, InProcessWorker, Proposal, Trained
from fedge.errors import TransportError
from fedge.messages import EncodedUpdate, Evaluation, Refusal, WeightsRequest
from fedge.params import Layout, Vector
from fedge.privacy.noise import Draws
from fedge.rng import stream
from fedge.settings import Hyperparameters, PrivacyConfig
from fedge.training.local import LocalTrainer
from tests.tiny_task import TinyTask

LAYOUT = Layout(("body", "head"), ((4, 5), (3,)))
HEAD = slice(20, 23)
HYPER = Hyperparameters(learning_rate=0.25, personal_layers=("head",))
CODECS = ["raw", "int8", "topk:0.4+int8", "rotate+eden:2", "topk:0.1+int8+signs:0.5"]


def learnt(round: int) -> Vector:
    return stream(1, "delta", round=round).normal(size=LAYOUT.size).astype(np.float32)


@dataclass
class DrawnWorker:
    """Learns something else each round, and notes what it was given."""

    starts: list[Vector] = field(default_factory=list)
    measured: list[Vector] = field(default_factory=list)
    after_training: Callable[[], None] = lambda: None

    def propose(self, ask: Ask) -> Proposal:
        return Proposal(10.0)

    def train(
        self,
        layout_digest: str,
        weights: Vector,
        hyper: Any,
        plan: Any,
        correction: Vector | None = None,
        *,
        round_id: str = "",
    ) -> Trained:
        self.starts.append(weights)
        self.after_training()
        return Trained(learnt(len(self.starts)), 6, 0.1)

    def evaluate(self, layout_digest: str, weights: Vector) -> Evaluation | None:
        self.measured.append(weights)
        return Evaluation(10.0, {"loss": 0.5})


def ask_for(round: int, *, codec: str = "raw", **fields: Any) -> WeightsRequest:
    weights = np.full(LAYOUT.size, round, np.float32)
    return replace(WeightsRequest("run", round, 9, LAYOUT, weights, HYPER, codec=codec), **fields)


def make(worker: DrawnWorker, replies: ReplyStore | None = None) -> Participant:
    return Participant(
        worker,
        MemoryLedger(),
        replies or MemoryReplyStore(),
        PrivacyConfig(enabled=False),
        rng=lambda: np.random.default_rng(3),
    )


def trained(participant: Participant, request: WeightsRequest) -> Vector:
    update = participant.train(request)
    assert isinstance(update, EncodedUpdate)
    return make_codec(update.codec).decode(update.payload, LAYOUT)


def test_training_starts_from_the_global_body_and_the_own_head() -> None:
    worker = DrawnWorker()
    participant = make(worker)
    head = np.full(3, 1, np.float32)  # a new client's is that of the global model
    for round in range(1, 5):
        sent = trained(participant, ask_for(round))
        assert (worker.starts[-1][:20] == round).all()
        np.testing.assert_array_equal(worker.starts[-1][HEAD], head)
        assert sent[:20].tobytes() == learnt(round)[:20].tobytes()
        assert not sent[HEAD].any()
        head = head + learnt(round)[HEAD]


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_sent_does_not_depend_on_what_the_head_learnt(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def payloads(scale: float) -> list[bytes]:
        def scaled(round: int) -> Vector:
            delta = whole(round)
            delta[HEAD] *= scale
            return delta

        monkeypatch.setattr("tests.unit.edge_client.test_personal_part.learnt", scaled)
        participant, sent = make(DrawnWorker()), []
        for round in range(1, 5):
            update = participant.train(ask_for(round, codec=codec))
            assert isinstance(update, EncodedUpdate)
            sent.append(update.payload)
        return sent

    whole = learnt
    assert payloads(1.0) == payloads(-1000.0)


def test_a_restart_between_any_two_rounds_changes_nothing(tmp_path: Path) -> None:
    steady, restarted = DrawnWorker(), DrawnWorker()
    participant = make(steady, FileReplyStore(tmp_path / "steady"))
    for round in range(1, 5):
        trained(participant, ask_for(round, codec="topk:0.4+int8"))
        again = make(restarted, FileReplyStore(tmp_path / "restarted"))
        trained(again, ask_for(round, codec="topk:0.4+int8"))
    np.testing.assert_array_equal(restarted.starts, steady.starts)
    assert len({start[HEAD].tobytes() for start in steady.starts}) == 4


def test_a_crash_before_the_reply_is_stored_leaves_the_head_as_it_was(tmp_path: Path) -> None:
    def crash() -> None:
        raise TransportError("killed")

    worker = DrawnWorker()
    trained(make(worker, FileReplyStore(tmp_path)), ask_for(1))
    with pytest.raises(TransportError):
        make(DrawnWorker(after_training=crash), FileReplyStore(tmp_path)).train(ask_for(2))
    for _ in range(2):  # the second time the stored reply answers, and nothing is trained
        trained(make(worker, FileReplyStore(tmp_path)), ask_for(2))
    assert len(worker.starts) == 2
    np.testing.assert_array_equal(worker.starts[1][HEAD], 1 + learnt(1)[HEAD])


def test_an_evaluation_measures_with_the_own_head() -> None:
    worker = DrawnWorker()
    participant = make(worker)
    participant.evaluate(ask_for(1))
    trained(participant, ask_for(1))
    participant.evaluate(ask_for(2))
    participant.evaluate(ask_for(2, run_name="another"))
    new, own, other = worker.measured
    assert (new == 1).all()
    assert (own[:20] == 2).all()
    np.testing.assert_array_equal(own[HEAD], 1 + learnt(1)[HEAD])
    assert (other == 2).all()


@pytest.mark.parametrize(
    "change",
    [
        {"layout": Layout(("body", "head", "more"), ((4, 5), (2,), ()))},
        {"hyper": replace(HYPER, personal_layers=("body",))},
        {"run_name": "another"},
    ],
    ids=["layout", "layers", "run"],
)
def test_the_head_of_another_model_run_or_choice_of_layers_begins_anew(
    change: dict[str, Any],
) -> None:
    worker = DrawnWorker()
    participant = make(worker)
    trained(participant, ask_for(1))
    trained(participant, ask_for(2, **change))
    assert (worker.starts[-1] == 2).all()


def test_what_was_held_back_of_a_layer_is_not_sent_once_it_is_personal() -> None:
    participant, anew = make(DrawnWorker()), make(DrawnWorker())
    codec = "topk:0.1+int8"  # error feedback holds nearly all of the first round
    shared = ask_for(1, codec=codec, hyper=replace(HYPER, personal_layers=()))
    trained(participant, shared)
    trained(anew, replace(shared, run_name="another"))
    sent = trained(participant, ask_for(2, codec=codec))
    assert not sent[HEAD].any()
    assert sent.tobytes() == trained(anew, ask_for(2, codec=codec)).tobytes()


@pytest.mark.parametrize("patterns", [("hed",), ("head", "tail*"), ("*",)])
def test_patterns_that_do_not_fit_the_model_are_refused_before_anything_is_spent(
    patterns: tuple[str, ...],
) -> None:
    worker, ledger = DrawnWorker(), MemoryLedger()
    participant = Participant(worker, ledger, MemoryReplyStore(), PrivacyConfig(enabled=False))
    request = ask_for(1, hyper=replace(HYPER, personal_layers=patterns))
    for answer in (participant.train(request), participant.evaluate(request)):
        assert isinstance(answer, Refusal)
        assert answer.reason == "task"
        assert "train.personal_layers" in answer.detail
        assert "head" in answer.detail
    assert worker.starts == worker.measured == []
    assert len(ledger.entries) == 0


@pytest.mark.parametrize("codec", CODECS)
def test_scaffolds_control_knows_nothing_of_the_head(codec: str) -> None:
    store = MemoryReplyStore()
    participant = make(DrawnWorker(), store)
    control = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)
    for round in range(1, 4):
        hyper = replace(HYPER, client_term="scaffold")
        trained(participant, ask_for(round, codec=codec, hyper=hyper, control=control))
        own = store.state("run")["control"]
        assert own[:20].any()
        assert not own[HEAD].any()


def test_under_dp_the_head_takes_the_same_noised_steps_at_the_same_price() -> None:
    """What the device keeps and what it sends are the two halves of one private training."""
    task, privacy = TinyTask(), PrivacyConfig(epsilon=4.0)
    trainer = LocalTrainer(task)
    layout, weights = trainer.layout, trainer.initial_weights(0)
    asked, costs, updates = [], [], []
    for patterns in ((), ("3.*",)):
        store, ledger = MemoryReplyStore(), MemoryLedger()
        worker = InProcessWorker(
            task, lambda _: task.client_data(0, 1), draws=lambda: Draws.seeded(7)
        )
        participant = Participant(worker, ledger, store, privacy)
        hyper = Hyperparameters(learning_rate=0.5, personal_layers=patterns)
        update = participant.train(WeightsRequest("run", 1, 3, layout, weights, hyper))
        assert isinstance(update, EncodedUpdate)
        asked.append(layout.views(np.frombuffer(update.payload, np.float32).copy()))
        costs.append((update.epsilon, [entry.spend for entry in ledger.entries]))
        updates.append(store.state("run"))
    whole, shared = asked
    kept, before = updates[1]["personal"], layout.views(weights)
    assert costs[0] == costs[1]
    for name in ("0.weight", "0.bias"):
        assert shared[name].tobytes() == whole[name].tobytes()
    for name in ("3.weight", "3.bias"):
        assert not shared[name].any()
        assert whole[name].all()  # noise reaches every parameter
        np.testing.assert_array_equal(kept[name], before[name] + whole[name])
