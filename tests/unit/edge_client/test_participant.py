from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from opacus.accountants import RDPAccountant

from edge_client.ledger import TRAIN, MemoryLedger
from edge_client.participant import Participant, TrainedRound
from edge_client.replies import MemoryReplyStore
from edge_client.worker import Ask, InProcessWorker, Proposal, Trained
from fedge.errors import BudgetExhausted, PrivacyError, TaskError, TransportError
from fedge.messages import EncodedUpdate, Evaluation, Refusal, WeightsRequest
from fedge.params import Layout, Vector
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters, PrivacyConfig
from fedge.task import Examples, Split
from fedge.tasks.digits import Digits

LAYOUT = Layout(("w",), ((3,),))
PLAN = DpPlan(1.0, 0.5, 2, 1.0, 1e-5, 64.0)
NO_DP = PrivacyConfig(enabled=False)


@dataclass
class FakeWorker:
    """Trains by adding one, at a price that a test sets."""

    proposal: Proposal = field(default_factory=lambda: Proposal(64.0, PLAN, 0.0, 1.0))
    before_training: Callable[[], None] = lambda: None
    asks: list[Ask] = field(default_factory=list)
    num_trainings: int = 0

    def propose(self, ask: Ask) -> Proposal:
        self.asks.append(ask)
        return self.proposal

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
        self.before_training()
        self.num_trainings += 1
        return Trained(np.full(3, self.num_trainings, np.float32), 2, 0.5)

    def evaluate(self, layout_digest: str, weights: Vector) -> Evaluation | None:
        return Evaluation(10.0, {"loss": 0.5})


def ask_for(round: int = 1, *, num_rounds: int = 5, run_name: str = "run") -> WeightsRequest:
    weights = np.full(3, round, np.float32)
    return WeightsRequest(run_name, round, num_rounds, LAYOUT, weights, Hyperparameters())


def decoded(update: EncodedUpdate | Refusal) -> np.ndarray[Any, Any]:
    assert isinstance(update, EncodedUpdate)
    return np.frombuffer(update.payload, np.float32)


def make(worker: Any, privacy: PrivacyConfig | None = None, **others: Any) -> Participant:
    ledger = others.pop("ledger", None) or MemoryLedger()
    return Participant(worker, ledger, MemoryReplyStore(), privacy or PrivacyConfig(), **others)


def test_an_update_names_its_round_parent_layout_and_cost() -> None:
    request = ask_for()
    update = make(FakeWorker()).train(request)
    assert isinstance(update, EncodedUpdate)
    assert (update.round, update.parent) == (1, request.parent)
    assert (update.layout_digest, update.num_examples) == (LAYOUT.digest, 64.0)
    assert update.epsilon == 1.0
    assert (update.codec, update.num_steps, update.distortion) == ("raw", 2.0, 0.0)
    assert decoded(update).tolist() == [1, 1, 1]


def test_the_same_round_asked_again_gets_the_same_bytes_and_costs_nothing() -> None:
    worker, ledger = FakeWorker(), MemoryLedger()
    participant = make(worker, ledger=ledger)
    first = participant.train(ask_for())
    assert participant.train(ask_for()) == first
    assert worker.num_trainings == len(ledger.entries) == 1


def test_another_parent_hyperparameter_or_codec_is_another_round() -> None:
    worker = FakeWorker()
    participant = make(worker)
    participant.train(ask_for())
    participant.train(replace(ask_for(), weights=np.zeros(3, np.float32)))
    participant.train(replace(ask_for(), hyper=Hyperparameters(learning_rate=0.25)))
    participant.train(replace(ask_for(), codec="f16"))
    assert worker.num_trainings == 4


def test_a_codec_that_this_device_does_not_know_is_refused_before_anything_is_spent() -> None:
    worker, ledger = FakeWorker(), MemoryLedger()
    answer = make(worker, ledger=ledger).train(replace(ask_for(), codec="of-tomorrow:9"))
    assert isinstance(answer, Refusal)
    assert answer.reason == "codec"
    assert "of-tomorrow" in answer.detail
    assert worker.num_trainings == len(ledger.entries) == 0


def test_the_cost_is_in_the_ledger_before_a_single_step() -> None:
    ledger = MemoryLedger()
    seen: list[tuple[int, bool]] = []
    worker = FakeWorker(
        before_training=lambda: seen.append((len(ledger.entries), ledger.entries[0].settled))
    )
    make(worker, ledger=ledger).train(ask_for())
    assert seen == [(1, False)]
    assert ledger.entries[0].settled


def test_a_crash_in_training_leaves_the_reservation_spent() -> None:
    def crash() -> None:
        raise TransportError("the training process broke off")

    ledger = MemoryLedger()
    participant = make(FakeWorker(before_training=crash), ledger=ledger)
    with pytest.raises(TransportError, match="broke off"):
        participant.train(ask_for())
    assert ledger.spends(TRAIN) == (PLAN.spend,)
    assert not ledger.entries[0].settled


def test_a_ledger_that_cannot_be_written_stops_training() -> None:
    class Broken(MemoryLedger):
        def reserve(self, *args: Any, **kwargs: Any) -> int:
            raise PrivacyError("disk full")

    worker = FakeWorker()
    with pytest.raises(PrivacyError, match="disk full"):
        make(worker, ledger=Broken()).train(ask_for())
    assert worker.num_trainings == 0


def test_a_round_beyond_the_budget_is_refused_and_spends_nothing() -> None:
    worker, ledger = FakeWorker(Proposal(64.0, PLAN, 7.5, 8.5)), MemoryLedger()
    participant = make(worker, ledger=ledger)
    answer = participant.train(ask_for())
    assert isinstance(answer, Refusal)
    assert answer.reason == "budget"
    assert "8.000" in answer.detail
    assert participant.problem == answer.detail
    assert worker.num_trainings == len(ledger.entries) == 0


def test_a_device_without_examples_says_so() -> None:
    answer = make(FakeWorker(Proposal(0.0))).train(ask_for())
    assert isinstance(answer, Refusal)
    assert answer.reason == "no-data"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TaskError("layer 'bn' is BatchNorm"), "task"),
        (BudgetExhausted(spent=1, needed=2, budget=1), "budget"),
    ],
)
def test_what_a_worker_refuses_becomes_a_refusal(error: Exception, reason: str) -> None:
    class Refusing(FakeWorker):
        def propose(self, ask: Ask) -> Proposal:
            raise error

    answer = make(Refusing()).train(ask_for())
    assert isinstance(answer, Refusal)
    assert (answer.reason, answer.detail) == (reason, str(error))


def test_a_worker_may_not_drop_dp() -> None:
    with pytest.raises(PrivacyError, match="although DP is on"):
        make(FakeWorker(Proposal(64.0, None))).train(ask_for())


def test_the_noise_of_a_run_is_fixed_in_its_first_round_for_the_rounds_left() -> None:
    worker = FakeWorker()
    participant = make(worker)
    participant.train(ask_for(2, num_rounds=5))
    participant.train(ask_for(3, num_rounds=5))
    participant.train(ask_for(3, run_name="another"))
    assert [ask.noise_multiplier for ask in worker.asks] == [None, 1.0, None]
    assert [ask.num_rounds_left for ask in worker.asks] == [4, 3, 3]
    assert len(worker.asks[2].spent) == 2


def test_without_dp_nothing_is_accounted() -> None:
    ledger = MemoryLedger()
    update = make(FakeWorker(Proposal(50.0)), NO_DP, ledger=ledger).train(ask_for())
    assert isinstance(update, EncodedUpdate)
    assert (update.epsilon, update.num_examples, ledger.entries) == (None, 50.0, [])


def test_timings_go_to_the_journal_and_not_into_the_update() -> None:
    notes: list[TrainedRound] = []
    participant = make(FakeWorker(), journal=notes.append)
    participant.train(ask_for())
    participant.train(ask_for())
    assert [(n.run, n.round, n.train_seconds, n.num_steps, n.epsilon) for n in notes] == [
        ("run", 1, 0.5, 2, 1.0)
    ]


def test_evaluation_is_refused_under_dp_and_true_without() -> None:
    refusal = make(FakeWorker()).evaluate(ask_for())
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "private"
    assert make(FakeWorker(), NO_DP).evaluate(ask_for()) == Evaluation(10.0, {"loss": 0.5})


def digits_worker(num_examples: int = 100) -> InProcessWorker:
    task = Digits()
    client = task.client_data(0, 4)

    def examples(split: Split) -> Examples:
        part = client.subset(np.arange(num_examples))
        return part if split == "train" else client.subset(np.arange(100, 120))

    return InProcessWorker(task, examples, draws=lambda: Draws.seeded(1))


def digits_request(round: int, num_rounds: int, worker: InProcessWorker) -> WeightsRequest:
    weights = worker.trainer.initial_weights(round)
    layout = worker.trainer.layout
    return WeightsRequest("run", round, num_rounds, layout, weights, Hyperparameters())


def test_planned_rounds_fit_the_budget_and_the_next_one_does_not() -> None:
    worker, ledger = digits_worker(), MemoryLedger()
    participant = make(worker, PrivacyConfig(epsilon=3.0), ledger=ledger)
    updates = [participant.train(digits_request(r, 3, worker)) for r in (1, 2, 3)]
    spent = [u.epsilon for u in updates if isinstance(u, EncodedUpdate) and u.epsilon]
    assert len(spent) == 3
    assert spent[0] < spent[1] < spent[2] <= 3.0
    assert spent[2] > 2.95
    refusal = participant.train(digits_request(4, 4, worker))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "budget"
    accountant = RDPAccountant()
    for spend in ledger.spends(TRAIN):
        for _ in range(spend.num_steps):
            accountant.step(
                noise_multiplier=spend.noise_multiplier, sample_rate=spend.sampling_rate
            )
    assert accountant.get_epsilon(1e-5) == pytest.approx(spent[2], rel=0.02)


def test_example_weights_are_public_buckets() -> None:
    worker = digits_worker(100)
    update = make(worker).train(digits_request(1, 5, worker))
    assert isinstance(update, EncodedUpdate)
    assert update.num_examples == 64.0


def test_without_dp_true_counts_and_metrics_are_sent_and_training_learns() -> None:
    worker = digits_worker(100)
    participant = make(worker, NO_DP)
    request = digits_request(1, 5, worker)
    update = participant.train(request)
    assert isinstance(update, EncodedUpdate)
    assert update.num_examples == 100.0
    before = participant.evaluate(request)
    after = participant.evaluate(replace(request, weights=request.weights + decoded(update)))
    assert isinstance(before, Evaluation)
    assert isinstance(after, Evaluation)
    assert before.num_examples == 20.0
    assert after.metrics["loss"] < before.metrics["loss"]


def test_weights_of_another_layout_are_refused_before_anything_is_spent() -> None:
    ledger = MemoryLedger()
    answer = make(digits_worker(), ledger=ledger).train(ask_for())
    assert isinstance(answer, Refusal)
    assert answer.reason == "task"
    assert ledger.entries == []


@pytest.mark.parametrize(("privacy", "is_told"), [(PrivacyConfig(), False), (NO_DP, True)])
def test_under_dp_what_is_wrong_with_the_data_stays_on_the_device(
    privacy: PrivacyConfig, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def examples(split: Split) -> Examples:
        raise TaskError("label 17 of sample 3 is odd")

    worker = InProcessWorker(Digits(), examples)
    answer = make(worker, privacy).train(digits_request(1, 5, worker))
    assert isinstance(answer, Refusal)
    assert answer.reason == "task"
    assert ("17" in answer.detail) is is_told
    assert ("17" in caplog.text) is not is_told
