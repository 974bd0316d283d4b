import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedge.flower_internals import set_task_identity
from fedge.messages import METRICS, Evaluation, Refusal, encode_evaluation, encode_refusal
from fedge.training.local import LocalTrainer
from server.evaluation import CentralEvaluation, FederatedEvaluation
from tests.unit.server.fake_grid import TinyTask


def reply(content: RecordDict | Error) -> Message:
    set_task_identity(run_id=1, node_id=1)
    message = Message(RecordDict({}), 7, "evaluate")
    message.metadata.__dict__["_message_id"] = "asked"
    return Message(content, reply_to=message)


def answer(num_examples: float, **metrics: float) -> Message:
    return reply(encode_evaluation(Evaluation(num_examples, metrics)))


@given(st.lists(st.tuples(st.floats(1, 1000), st.floats(0, 1)), min_size=1, max_size=30))
def test_means_are_weighted_and_the_worst_tenth_is_not(clients: list[tuple[float, float]]) -> None:
    evaluation = FederatedEvaluation(max_examples=1e6)
    for num_examples, accuracy in clients:
        evaluation.take(answer(num_examples, accuracy=accuracy))
    metrics = evaluation.metrics()
    total = sum(weight for weight, _ in clients)
    assert metrics["accuracy"] == pytest.approx(sum(w * a for w, a in clients) / total)
    worst = sorted(a for _, a in clients)[: -(-len(clients) // 10)]
    assert metrics["accuracy_worst_tenth"] == pytest.approx(sum(worst) / len(worst))


def test_bad_replies_are_counted_and_left_out() -> None:
    evaluation = FederatedEvaluation(max_examples=100)
    evaluation.take(answer(10, accuracy=0.5, loss=2.0))
    evaluation.take(answer(1e12, accuracy=0.0))
    evaluation.take(answer(-1, accuracy=0.0))
    evaluation.take(answer(10, accuracy=float("nan")))
    evaluation.take(reply(RecordDict({METRICS: MetricRecord({"accuracy": 0.1})})))
    evaluation.take(reply(encode_refusal(Refusal("private", "DP is on"))))
    evaluation.take(reply(Error(5, "offline")))
    assert evaluation.summary(num_asked=8) == {
        "num_asked": 8,
        "num_clients": 1,
        "num_examples": 10,
        "refused": {
            "examples": 2,
            "not-finite": 1,
            "malformed": 1,
            "private": 1,
            "node-offline": 1,
        },
        "accuracy": 0.5,
        "accuracy_worst_tenth": 0.5,
        "loss": 2.0,
        "accuracy_deciles": [0.5] * 11,
    }


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_deciles_show_how_the_devices_differ(accuracies: list[float]) -> None:
    evaluation = FederatedEvaluation(max_examples=100)
    for accuracy in accuracies:
        evaluation.add(Evaluation(10, {"accuracy": accuracy}))
    deciles = evaluation.summary(len(accuracies))["accuracy_deciles"]
    ranked = sorted(accuracies)
    assert len(deciles) == 11
    assert (deciles[0], deciles[-1]) == (ranked[0], ranked[-1])
    assert deciles == sorted(deciles)
    for tenth, value in enumerate(deciles):
        at = tenth * (len(ranked) - 1) / 10  # position among the ranked, from 0
        below, above = ranked[int(at)], ranked[min(int(at) + 1, len(ranked) - 1)]
        assert value == pytest.approx(below + (at - int(at)) * (above - below))


def test_without_accuracies_there_are_no_deciles() -> None:
    evaluation = FederatedEvaluation(max_examples=100)
    evaluation.add(Evaluation(10, {"loss": 1.0}))
    evaluation.add(Refusal("no-data", ""))
    assert evaluation.summary(2)["accuracy_deciles"] is None


def test_nobody_answering_is_no_metrics() -> None:
    assert FederatedEvaluation(10).metrics() == {}


def test_central_evaluation_names_each_metric_by_share() -> None:
    trainer = LocalTrainer(TinyTask())
    data = TinyTask().cloud_data()
    perfect = np.array([1, -1, 0], np.float32)
    metrics = CentralEvaluation(trainer, data).evaluate(perfect)
    assert sorted(metrics) == ["accuracy_gate", "accuracy_test", "loss_gate", "loss_test"]
    assert metrics["loss_test"] == pytest.approx(0, abs=1e-10)
    assert metrics["accuracy_gate"] == 1.0
    assert CentralEvaluation(trainer, data).evaluate_test(perfect)["accuracy"] == 1.0
