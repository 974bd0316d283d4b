import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from fedge.channels import add_address, bearer_token_interceptor, client_channel, make_server
from fedge.params import Vector, vector_digest
from fedge.protocol import PROTOCOL_VERSION
from fedge.settings import TlsConfig
from fedge.training.local import LocalTrainer
from protos.fedge.v1 import trainer_pb2 as pb
from protos.fedge.v1.trainer_pb2_grpc import TrainerStub, add_TrainerServicer_to_server
from server.trainer.alone import refining_alone
from server.trainer.jobs import HELD_OUT_FRACTION, Job, JobRunner
from server.trainer.proxy_split import split_proxy
from server.trainer.refining import ProxyData
from server.trainer.service import TrainerService
from server.trainer.spec import RefineSpec
from server.trainer.wire import order_for, order_to_proto
from tests.tiny_task import TinyTask

TASK = TinyTask()
TRAINER = LocalTrainer(TASK)
LAYOUT = TRAINER.layout
WEIGHTS = TRAINER.initial_weights(0)
SPEC = RefineSpec(steps=5, round=4)


@contextmanager
def _serving(
    task: TinyTask = TASK,
    *,
    token: str | None = None,
    sent: str | None = None,
    max_model_bytes: int = 1 << 20,
) -> Iterator[tuple[TrainerStub, JobRunner]]:
    runner = JobRunner(refining_alone(task))
    interceptors = [] if token is None else [bearer_token_interceptor(token)]
    server = make_server(4, interceptors=interceptors)
    add_TrainerServicer_to_server(TrainerService(runner, max_model_bytes), server)
    port = add_address(server, "127.0.0.1:0", TlsConfig())
    server.start()
    try:
        with client_channel(f"127.0.0.1:{port}", TlsConfig(), sent) as channel:
            yield TrainerStub(channel), runner
    finally:
        server.stop(0).wait()
        runner.close()


def _requests(
    weights: Vector = WEIGHTS, spec: RefineSpec = SPEC, **changes: Any
) -> Iterator[pb.RefineRequest]:
    message = order_to_proto(order_for("run", LAYOUT, weights, spec))
    for name, value in changes.items():
        setattr(message, name, value)
    yield pb.RefineRequest(spec=message)
    content = weights.tobytes()
    for start in range(0, len(content), 100):
        yield pb.RefineRequest(weights=content[start : start + 100])


def _refused(stub: TrainerStub, requests: Iterator[pb.RefineRequest]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Refine(requests, timeout=20))
    call: Any = caught.value
    return call.code().name, call.details()


def test_refining_gives_progress_then_the_summary_then_the_weights_of_the_loop() -> None:
    expected = refining_alone(TASK).run(WEIGHTS, SPEC)
    with _serving() as (stub, _):
        responses = list(stub.Refine(_requests(), timeout=20))
    parts = [str(each.WhichOneof("part")) for each in responses]
    assert parts == sorted(parts)  # progress, summary, weights
    last = responses[parts.index("summary") - 1].progress
    assert (last.step, last.num_steps) == (5, 5)
    summary = responses[parts.index("summary")].summary
    refined = b"".join(each.weights for each in responses)
    assert refined == expected.weights.tobytes()
    assert summary.digest == vector_digest(expected.weights)
    assert (summary.steps, summary.size_bytes) == (5, len(refined))
    assert (summary.loss_first, summary.loss_last) == (expected.loss_first, expected.loss_last)


def test_the_same_order_is_answered_again_without_training() -> None:
    with _serving() as (stub, runner):
        answers = []
        for deadline_s in (30.0, 7.0):
            responses = stub.Refine(_requests(spec=replace(SPEC, deadline_s=deadline_s)))
            answers.append([each for each in responses if not each.HasField("progress")])
        assert answers[0] == answers[1]
        assert runner.num_done == 1
        list(stub.Refine(_requests(spec=replace(SPEC, round=5)), timeout=20))
        list(stub.Refine(_requests(run_name="other"), timeout=20))
        assert runner.num_done == 3


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"protocol": 99}, "UNIMPLEMENTED", "protocol 99 was asked for"),
        ({"size_bytes": 1 << 40}, "RESOURCE_EXHAUSTED", "max_model_bytes is 1048576"),
        ({"layout_digest": "ab" * 32}, "FAILED_PRECONDITION", "configure the same task on both"),
        ({"size_bytes": 12}, "INVALID_ARGUMENT", f"expected {LAYOUT.size_bytes}"),
        ({"parent": "cd" * 32}, "INVALID_ARGUMENT", "announced was cdcdcdcdcdcd"),
        ({"objective": "x"}, "INVALID_ARGUMENT", "there are: anchored, distill, fine-tune"),
        ({"optimizer": "x"}, "INVALID_ARGUMENT", "there are: adamw, sgd"),
        ({"augmentation": "x"}, "INVALID_ARGUMENT", "there are: affine, none, task"),
        ({"max_turn_deg": 200.0}, "INVALID_ARGUMENT", "max_turn_deg: must be >= 0 and <= 180"),
        ({"held_out": 1.0}, "INVALID_ARGUMENT", "held_out: must be >= 0 and < 1"),
        ({"temperature": 0.0}, "INVALID_ARGUMENT", "temperature: must be > 0"),
        ({"learning_rate": math.nan}, "INVALID_ARGUMENT", "learning_rate"),
        ({"momentum": 1.5}, "INVALID_ARGUMENT", "momentum: must be >= 0 and < 1, got 1.5"),
        ({"steps": 0}, "INVALID_ARGUMENT", "steps: must be >= 1"),
        ({"batch_size": 0}, "INVALID_ARGUMENT", "batch_size: must be >= 1"),
        ({"deadline_s": -1.0}, "INVALID_ARGUMENT", "deadline_s: must be > 0"),
    ],
)
def test_a_bad_order_is_refused_before_any_step(
    changes: dict[str, Any], code: str, text: str
) -> None:
    with _serving() as (stub, runner):
        found = _refused(stub, _requests(**changes))
        assert found[0] == code
        assert text in found[1]
        assert runner.num_done == 0


def test_a_size_beyond_the_limit_is_refused_before_the_body_arrives() -> None:
    def endless() -> Iterator[pb.RefineRequest]:
        yield next(_requests(size_bytes=1 << 33))
        held.wait(20)

    held = threading.Event()
    with _serving() as (stub, _):
        assert _refused(stub, endless())[0] == "RESOURCE_EXHAUSTED"
        held.set()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weights = WEIGHTS.copy()
    weights[3] = value
    with _serving() as (stub, _):
        assert _refused(stub, _requests(weights)) == (
            "INVALID_ARGUMENT",
            "the weights are not finite",
        )


def test_a_stream_of_another_shape_is_refused() -> None:
    spec, chunk, *_ = _requests()
    too_long = pb.RefineRequest(weights=bytes(LAYOUT.size_bytes))
    with _serving() as (stub, _):
        for stream, text in (
            ([], "ended before the spec"),
            ([chunk], "expected spec, got weights"),
            ([spec, spec], "expected weights, got spec"),
            ([spec, chunk], f"100 of {LAYOUT.size_bytes} bytes"),
            ([spec, chunk, too_long], "more bytes came"),
        ):
            code, details = _refused(stub, iter(stream))
            assert code == "INVALID_ARGUMENT"
            assert text in details


@pytest.mark.parametrize("sent", [None, "guess"])
def test_without_the_token_nothing_is_done(sent: str | None) -> None:
    with _serving(token="secret", sent=sent) as (stub, runner):
        assert _refused(stub, _requests())[0] == "UNAUTHENTICATED"
        assert runner.num_done == 0


def test_with_the_token_it_refines() -> None:
    with _serving(token="secret", sent="secret") as (stub, runner):
        list(stub.Refine(_requests(), timeout=20))
        assert runner.num_done == 1


def test_a_refinement_that_fails_says_why_and_the_next_one_works() -> None:
    with _serving() as (stub, _):
        code, text = _refused(stub, _requests(spec=replace(SPEC, learning_rate=1e38, steps=9)))
        assert code == "ABORTED"
        assert "not finite" in text
        assert list(stub.Refine(_requests(), timeout=20))


def test_a_bug_in_the_task_is_told_to_the_caller() -> None:
    with _serving(TinyTask(bug=True)) as (stub, _):
        assert _refused(stub, _requests()) == (
            "ABORTED",
            "the task failed: RuntimeError: no such thing",
        )


def test_training_stops_when_the_caller_leaves() -> None:
    with _serving(TinyTask(loss_s=0.02)) as (stub, runner):
        call: Any = stub.Refine(_requests(spec=replace(SPEC, steps=100_000, deadline_s=600)))
        assert next(iter(call)).HasField("progress")
        call.cancel()
        quick = replace(SPEC, steps=1)
        list(stub.Refine(_requests(spec=quick), timeout=20))  # has to wait for the thread
        assert runner.num_done == 1


def test_a_passed_deadline_stops_the_training() -> None:
    with _serving(TinyTask(loss_s=0.02)) as (stub, _):
        spec = replace(SPEC, steps=100_000, deadline_s=0.1)
        code, text = _refused(stub, _requests(spec=spec))
        assert code == "ABORTED"
        assert "deadline of 0.1 s passed" in text


def test_status_says_what_is_refined_here() -> None:
    with _serving() as (stub, _):
        list(stub.Refine(_requests(), timeout=20))
        status = stub.Status(pb.TrainerStatusRequest(), timeout=20)
    assert (status.protocol, status.task, status.world_size) == (PROTOCOL_VERSION, "tiny", 1)
    assert status.layout_digest == LAYOUT.digest
    assert status.refinements == 1


def _search(*candidates: pb.Candidate) -> Iterator[pb.SearchRequest]:
    for request in _requests():
        if request.HasField("spec"):
            yield pb.SearchRequest(spec=request.spec)
        else:
            yield pb.SearchRequest(weights=request.weights)
    for candidate in candidates:
        yield pb.SearchRequest(candidate=candidate)


def test_search_scores_candidates_on_proxy_data_that_they_did_not_train_on() -> None:
    tame = pb.Candidate(id=7, learning_rate=0.05, momentum=0.9, batch_size=8, steps=30)
    wild = pb.Candidate(id=8, learning_rate=1e38, momentum=0.9, batch_size=8, steps=30)
    with _serving() as (stub, runner):
        scores = {each.candidate: each.loss for each in stub.Search(_search(tame, wild))}
        assert runner.num_done == 0
    train, held_out = split_proxy(TASK.cloud_data().proxy, SPEC.seed, HELD_OUT_FRACTION)
    spec = replace(SPEC, learning_rate=0.05, momentum=0.9, batch_size=8, steps=30)
    refined = refining_alone(TASK, ProxyData(train)).run(WEIGHTS, spec).weights
    assert scores == {7: pytest.approx(TRAINER.losses(refined, held_out).mean()), 8: math.inf}
    assert scores[7] < TRAINER.losses(WEIGHTS, held_out).mean()


def test_a_candidate_that_cannot_be_tried_is_named() -> None:
    bad = pb.Candidate(id=3, learning_rate=0.1, momentum=0.9, batch_size=8, steps=0)
    with _serving() as (stub, _), pytest.raises(grpc.RpcError) as caught:
        list(stub.Search(_search(bad), timeout=20))
    call: Any = caught.value
    assert "candidate 3: steps: must be >= 1" in call.details()


def test_the_search_split_is_disjoint_complete_and_repeats() -> None:
    proxy = TASK.cloud_data().proxy
    train, held_out = split_proxy(proxy, 5, HELD_OUT_FRACTION)
    again, _ = split_proxy(proxy, 5, HELD_OUT_FRACTION)
    np.testing.assert_array_equal(train.inputs, again.inputs)
    assert (len(train), len(held_out)) == (30, 10)
    rows = {row.tobytes() for part in (train, held_out) for row in part.inputs}
    assert rows == {row.tobytes() for row in proxy.inputs}


def test_a_job_survives_its_way_to_the_other_ranks() -> None:
    job = Job(replace(SPEC, learning_rate=0.1 + 0.2), "search", "name")
    assert Job.from_json(job.to_json()) == job
