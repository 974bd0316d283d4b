"""What a participant remembers from round to round, through restarts and crashes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregation.codecs import make_codec
from aggregation.contracts import Memory
from aggregation.local_steps import next_control
from edge_client.held_weights import HeldWeights
from edge_client.ledger import MemoryLedger
from edge_client.participant import Participant
from edge_client.replies import FileReplyStore, MemoryReplyStore, ReplyStore
from edge_client.worker import Ask, Proposal, Trained
from fedge.errors import StoreError, TransportError
from fedge.messages import (
    DeltaRequest,
    Downlink,
    EncodedUpdate,
    Evaluation,
    Refusal,
    RoundKey,
    WeightsRequest,
)
from fedge.params import Layout, Vector, vector_digest
from fedge.rng import stream
from fedge.settings import Hyperparameters, PrivacyConfig

LAYOUT = Layout(("w", "b"), ((4, 5), (3,)))
NUM_STEPS = 6
TOP_K = "topk:0.1+int8"


@dataclass
class DrawnWorker:
    """Learns what its weights say it should, plus the correction, so that every use shows."""

    corrections: list[Vector | None] = field(default_factory=list)
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
        self.corrections.append(correction)
        delta = stream(1, "delta", round=int(weights[0])).normal(size=LAYOUT.size)
        if correction is not None:
            delta = delta - correction
        self.after_training()
        return Trained(delta.astype(np.float32), NUM_STEPS, 0.1)

    def evaluate(self, layout_digest: str, weights: Vector) -> Evaluation | None:
        return Evaluation(10.0, {"first": float(weights[0])})


def ask_for(round: int, *, codec: str = TOP_K, **fields: Any) -> WeightsRequest:
    weights = np.full(LAYOUT.size, round, np.float32)
    request = WeightsRequest("run", round, 9, LAYOUT, weights, Hyperparameters(), codec=codec)
    return replace(request, **fields)


def scaffold(round: int, **fields: Any) -> WeightsRequest:
    control = stream(2, "control", round=round).normal(size=LAYOUT.size).astype(np.float32)
    hyper = Hyperparameters(learning_rate=0.25, client_term="scaffold")
    return ask_for(round, hyper=hyper, control=control, **fields)


def make(replies: ReplyStore, worker: Any = None, **others: Any) -> Participant:
    draws = iter(range(1000))
    return Participant(
        worker or DrawnWorker(),
        MemoryLedger(),
        replies,
        PrivacyConfig(enabled=False),
        **{"rng": lambda: np.random.default_rng(next(draws)), **others},
    )


def trained(participant: Participant, request: WeightsRequest | DeltaRequest) -> EncodedUpdate:
    update = participant.train(request)
    assert isinstance(update, EncodedUpdate)
    return update


def delta_of(update: EncodedUpdate) -> Vector:
    return make_codec(update.codec).decode(update.payload, LAYOUT)


@pytest.mark.parametrize("ask", [ask_for, scaffold])
def test_a_restart_between_any_two_rounds_changes_no_byte(
    tmp_path: Path, ask: Callable[[int], WeightsRequest]
) -> None:
    steady = make(FileReplyStore(tmp_path / "steady"), rng=lambda: np.random.default_rng(3))
    for round in range(1, 6):
        restarted = make(
            FileReplyStore(tmp_path / "restarted"), rng=lambda: np.random.default_rng(3)
        )
        assert trained(restarted, ask(round)) == trained(steady, ask(round))
    [left] = (tmp_path / "steady").iterdir()
    [right] = (tmp_path / "restarted").iterdir()
    assert left.read_bytes() == right.read_bytes()


def test_all_that_was_sent_and_what_is_left_are_all_that_was_learnt() -> None:
    store = MemoryReplyStore()
    participant = make(store)
    sent = sum(delta_of(trained(participant, ask_for(round))) for round in range(1, 8))
    learnt = sum(stream(1, "delta", round=r).normal(size=LAYOUT.size) for r in range(1, 8))
    left = store.state("run")["codec_state"]["residual"]
    assert np.linalg.norm(left) > 0.1
    np.testing.assert_allclose(sent + left, learnt, atol=1e-5)


def test_the_same_request_again_gets_the_same_bytes_and_advances_nothing(tmp_path: Path) -> None:
    worker = DrawnWorker()
    participant = make(FileReplyStore(tmp_path), worker)
    trained(participant, scaffold(1))
    update = trained(participant, scaffold(2))
    [path] = tmp_path.iterdir()
    content = path.read_bytes()
    assert trained(participant, scaffold(2)) == update
    assert trained(make(FileReplyStore(tmp_path), worker), scaffold(2)) == update
    assert path.read_bytes() == content
    assert len(worker.corrections) == 2


@pytest.mark.parametrize("crash_at", ["training", "storing"])
def test_a_crash_before_the_reply_is_stored_advances_nothing(tmp_path: Path, crash_at: str) -> None:
    class FullDisk(FileReplyStore):
        def put(self, key: RoundKey, update: EncodedUpdate, state: Memory) -> None:
            raise StoreError("disk full")

    def crash() -> None:
        raise TransportError("killed")

    whole = make(FileReplyStore(tmp_path / "whole"), rng=lambda: np.random.default_rng(3))
    trained(whole, scaffold(1))
    expected = trained(whole, scaffold(2))
    folder = tmp_path / "crashed"
    first = make(FileReplyStore(folder), rng=lambda: np.random.default_rng(3))
    trained(first, scaffold(1))
    [path] = folder.iterdir()
    before = path.read_bytes()
    if crash_at == "training":
        crashing = make(FileReplyStore(folder), DrawnWorker(after_training=crash))
    else:
        crashing = make(FullDisk(folder))
    with pytest.raises((TransportError, StoreError)):
        crashing.train(scaffold(2))
    assert path.read_bytes() == before
    again = make(FileReplyStore(folder), rng=lambda: np.random.default_rng(3))
    assert trained(again, scaffold(2)) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"codec": "topk:0.2+int8"},
        {"layout": Layout(("other", "b"), ((4, 5), (3,)))},
        {"run_name": "another"},
    ],
)
def test_error_feedback_of_another_codec_model_or_run_is_not_used(change: dict[str, Any]) -> None:
    store = MemoryReplyStore()
    participant = make(store, rng=lambda: np.random.default_rng(3))
    trained(participant, ask_for(1))
    request = ask_for(2, **change)
    anew = make(MemoryReplyStore(), rng=lambda: np.random.default_rng(3))
    assert trained(participant, request) == trained(anew, request)


def test_a_damaged_memory_begins_anew_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    participant = make(FileReplyStore(tmp_path), rng=lambda: np.random.default_rng(3))
    trained(participant, scaffold(1))
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    anew = make(MemoryReplyStore(), rng=lambda: np.random.default_rng(3))
    assert trained(participant, scaffold(2)) == trained(anew, scaffold(2))
    assert "begins anew" in caplog.text


@pytest.mark.parametrize("codec", ["raw", TOP_K])
def test_scaffolds_control_follows_from_what_was_sent_and_corrects_the_next_round(
    codec: str,
) -> None:
    store, worker = MemoryReplyStore(), DrawnWorker()
    participant = make(store, worker)
    own = np.zeros(LAYOUT.size, np.float32)
    for round in range(1, 4):
        request = scaffold(round, codec=codec)
        update = trained(participant, request)
        assert update.num_steps == NUM_STEPS
        correction = worker.corrections[-1]
        assert correction is not None
        assert request.control is not None
        np.testing.assert_allclose(correction, request.control - own, rtol=1e-5, atol=1e-6)
        own = own - request.control - delta_of(update) / np.float32(NUM_STEPS * 0.25)
        np.testing.assert_allclose(store.state("run")["control"], own, rtol=1e-5, atol=1e-6)


def test_the_server_can_follow_every_control_from_what_it_receives() -> None:
    store = MemoryReplyStore()
    participant, own = make(store), None
    for round in range(1, 4):
        request = scaffold(round)
        update = trained(participant, request)
        own = next_control(
            own,
            request.control,
            delta_of(update),
            num_steps=update.num_steps,
            learning_rate=request.hyper.learning_rate,
        )
        assert own.tobytes() == store.state("run")["control"].tobytes()


def test_without_memory_nothing_is_stored_beside_the_reply() -> None:
    store = MemoryReplyStore()
    trained(make(store), ask_for(1, codec="raw"))
    assert store.state("run") == {}


def test_a_control_that_is_not_finite_is_refused_before_training() -> None:
    worker = DrawnWorker()
    control = np.full(LAYOUT.size, np.inf, np.float32)
    answer = make(MemoryReplyStore(), worker).train(replace(scaffold(1), control=control))
    assert isinstance(answer, Refusal)
    assert answer.reason == "task"
    assert worker.corrections == []


def downlink_to(base: WeightsRequest, request: WeightsRequest, codec: str = "raw") -> DeltaRequest:
    """Return the request with a delta in place of its weights."""
    delta = request.weights - base.weights
    downlink = Downlink(base.parent, request.parent, codec, (delta.tobytes(),))
    fields = {name: value for name, value in vars(request).items() if name != "weights"}
    return DeltaRequest(downlink=downlink, **fields)


def test_a_delta_gives_the_update_that_whole_weights_would() -> None:
    first, second = ask_for(1, keep_parent=True), ask_for(2, keep_parent=True)
    plain = make(MemoryReplyStore(), rng=lambda: np.random.default_rng(3))
    holding = make(MemoryReplyStore(), rng=lambda: np.random.default_rng(3), held=HeldWeights())
    assert not trained(plain, first).holds_parent
    assert trained(holding, first).holds_parent
    whole, followed = trained(plain, second), trained(holding, downlink_to(first, second))
    assert followed == replace(whole, holds_parent=True)
    third = ask_for(3, keep_parent=False)
    assert not trained(holding, downlink_to(second, third)).holds_parent


def test_who_holds_nothing_asks_for_whole_weights_and_trains_nothing() -> None:
    first, second = ask_for(1, keep_parent=True), ask_for(2, keep_parent=True)
    worker, store = DrawnWorker(), MemoryReplyStore()
    for held in (None, HeldWeights()):
        participant = make(store, worker, held=held)
        for answer in (
            participant.train(downlink_to(first, second)),
            participant.evaluate(downlink_to(first, second)),
        ):
            assert isinstance(answer, Refusal)
            assert answer.reason == "stale-base"
        assert participant.problem == ""
    assert worker.corrections == []
    assert trained(make(store, worker, held=HeldWeights()), second).holds_parent


def test_a_stored_reply_is_given_again_and_says_what_is_held_now() -> None:
    first, second = ask_for(1, keep_parent=True), ask_for(2, keep_parent=True)
    store = MemoryReplyStore()
    participant = make(store, held=HeldWeights())
    trained(participant, first)
    update = trained(participant, downlink_to(first, second))
    assert update.holds_parent
    restarted = make(store, held=HeldWeights())
    again = trained(restarted, downlink_to(first, second))
    assert again == replace(update, holds_parent=False)
    assert trained(restarted, second) == update


def test_an_evaluation_reads_a_delta_and_what_is_held_stays() -> None:
    first, second = ask_for(1, keep_parent=True), ask_for(2, keep_parent=True)
    participant = make(MemoryReplyStore(), held=HeldWeights())
    trained(participant, first)
    for _ in range(2):
        evaluation = participant.evaluate(downlink_to(first, second))
        assert evaluation == Evaluation(10.0, {"first": 2.0})
    assert trained(participant, downlink_to(first, second)).holds_parent


def test_a_lossy_delta_that_leads_elsewhere_is_refused_and_the_base_still_held() -> None:
    first, second = ask_for(1, keep_parent=True), ask_for(2, keep_parent=True)
    participant = make(MemoryReplyStore(), held=HeldWeights())
    trained(participant, first)
    request = downlink_to(first, second)
    wrong = replace(
        request, downlink=replace(request.downlink, parent=vector_digest(first.weights * 9))
    )
    answer = participant.train(wrong)
    assert isinstance(answer, Refusal)
    assert answer.reason == "stale-base"
    assert trained(participant, request).holds_parent


def test_on_a_device_the_encoding_draws_fresh_randomness() -> None:
    payloads = {
        trained(
            Participant(
                DrawnWorker(), MemoryLedger(), MemoryReplyStore(), PrivacyConfig(enabled=False)
            ),
            ask_for(1, codec="int8"),
        ).payload
        for _ in range(4)
    }
    assert len(payloads) > 1
