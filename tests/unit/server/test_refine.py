import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from fedge.channels import add_address, make_server
from fedge.errors import RefineError
from fedge.params import vector_digest
from fedge.settings import TlsConfig
from fedge.training.local import LocalTrainer
from protos.fedge.v1 import trainer_pb2 as pb
from protos.fedge.v1.trainer_pb2_grpc import TrainerServicer, add_TrainerServicer_to_server
from server import refine
from server.refine import GrpcRefiner, InProcessRefiner, make_refiner
from server.settings import RefineConfig, ServerConfig
from server.trainer.spec import RefineSpec
from tests.tiny_task import TinyTask
from tests.tls_files import make_tls
from tests.trainer_process import TrainerProcess, at_first_progress

TASK = TinyTask()
TRAINER = LocalTrainer(TASK)
WEIGHTS = TRAINER.initial_weights(0)
SPEC = RefineSpec(steps=5)


def _refiner(address: str, spec: RefineSpec = SPEC, **options: Any) -> GrpcRefiner:
    return GrpcRefiner(RefineConfig(trainer=address, **options), "run", TRAINER.layout, spec)


@contextmanager
def _answering(*responses: pb.RefineResponse) -> Iterator[GrpcRefiner]:
    """Serve a trainer that gives the same responses to whatever it is asked."""

    class Parrot(TrainerServicer):
        def Refine(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
            list(request_iterator)
            yield from responses

    server = make_server(2)
    add_TrainerServicer_to_server(Parrot(), server)  # type: ignore[abstract]
    port = add_address(server, "127.0.0.1:0", TlsConfig())
    server.start()
    try:
        yield _refiner(f"127.0.0.1:{port}")
    finally:
        server.stop(0).wait()


def _summary(**changes: Any) -> pb.RefineResponse:
    summary = pb.RefineSummary(
        digest=vector_digest(WEIGHTS), size_bytes=WEIGHTS.nbytes, steps=5, seconds=1.0
    )
    for name, value in changes.items():
        setattr(summary, name, value)
    return pb.RefineResponse(summary=summary)


PROGRESS = pb.RefineResponse(progress=pb.RefineProgress(step=1, num_steps=5, loss=1.0))
BODY = pb.RefineResponse(weights=WEIGHTS.tobytes())


def test_what_the_trainer_sends_is_taken_when_it_is_whole() -> None:
    with _answering(PROGRESS, _summary(loss_first=2.0, loss_last=1.0), BODY) as refiner:
        refinement = refiner.refine(WEIGHTS, round=1, deadline_s=20)
    np.testing.assert_array_equal(refinement.weights, WEIGHTS)
    assert (refinement.num_steps, refinement.loss_first, refinement.loss_last) == (5, 2.0, 1.0)
    refinement.weights[0] = 1  # the caller owns it


def _nan_body() -> tuple[pb.RefineResponse, ...]:
    weights = WEIGHTS.copy()
    weights[0] = np.nan
    body = pb.RefineResponse(weights=weights.tobytes())
    return _summary(digest=vector_digest(weights)), body


@pytest.mark.parametrize(
    ("responses", "text"),
    [
        ((), "ended before its summary"),
        ((PROGRESS, BODY), "expected summary, got weights"),
        ((_summary(), PROGRESS), "expected weights, got progress"),
        ((_summary(size_bytes=8), BODY), "8 bytes announced"),
        ((_summary(size_bytes=1 << 62),), "bytes announced"),
        ((_summary(),), f"0 of {WEIGHTS.nbytes} bytes"),
        ((_summary(), BODY, BODY), "more bytes came"),
        ((_summary(digest="ab" * 32), BODY), "do not match their digest"),
        ((_summary(loss_last=float("nan")), BODY), "not finite"),
        (_nan_body(), "not finite"),
    ],
)
def test_nonsense_from_the_trainer_is_a_refine_error(
    responses: tuple[pb.RefineResponse, ...], text: str
) -> None:
    with _answering(*responses) as refiner, pytest.raises(RefineError, match=text):
        refiner.refine(WEIGHTS, round=1, deadline_s=20)


def test_a_trainer_that_is_not_there_is_a_refine_error_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(RefineError, match=f"the trainer at {address} cannot be reached"):
        _refiner(address).refine(WEIGHTS, round=1, deadline_s=30)
    assert time.monotonic() - started < 15


def test_a_trainer_that_hangs_is_a_refine_error_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refiner = _refiner(f"127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(RefineError, match="did not answer in time"):
            refiner.refine(WEIGHTS, round=1, deadline_s=0.5)
        assert 0.4 < time.monotonic() - started < 10


def test_a_trainer_without_that_service_is_a_refine_error() -> None:
    server = make_server(1)
    port = add_address(server, "127.0.0.1:0", TlsConfig())
    server.start()
    try:
        with pytest.raises(RefineError, match="speaks another protocol"):
            _refiner(f"127.0.0.1:{port}").refine(WEIGHTS, round=1, deadline_s=20)
    finally:
        server.stop(0).wait()


def test_the_configuration_chooses_the_refiner() -> None:
    off = ServerConfig()
    assert make_refiner(off, TASK) is None
    local = replace(off, refine=RefineConfig(trainer="in-process"), seed=3)
    assert isinstance(make_refiner(local, TASK), InProcessRefiner)
    remote = replace(off, refine=RefineConfig(trainer="127.0.0.1:9094"))
    assert isinstance(make_refiner(remote, TASK), GrpcRefiner)


def test_in_process_the_configured_spec_is_refined_by() -> None:
    refine = RefineConfig(trainer="in-process", learning_rate=0.2, steps=40, batch_size=8)
    refiner = make_refiner(ServerConfig(refine=refine), TASK)
    assert refiner is not None
    refinement = refiner.refine(WEIGHTS, round=2, deadline_s=20)
    refiner.close()
    assert refinement.num_steps == 40
    proxy = TASK.cloud_data().proxy
    assert TRAINER.losses(refinement.weights, proxy).mean() < TRAINER.losses(WEIGHTS, proxy).mean()


@pytest.mark.parametrize(
    ("task", "spec", "text"),
    [
        (TinyTask(bug=True), SPEC, "RuntimeError: no such thing"),
        (TASK, replace(SPEC, learning_rate=1e38), "not finite"),
        (TASK, replace(SPEC, optimizer="x"), "^no refinement optimizer .* adamw, sgd"),
        (TASK, replace(SPEC, objective="x"), "there are: anchored, distill, fine-tune"),
        (TinyTask(loss_s=0.05), replace(SPEC, steps=100), "deadline of 0.1 s passed"),
    ],
)
def test_in_process_every_failure_is_a_refine_error(
    task: TinyTask, spec: RefineSpec, text: str
) -> None:
    with pytest.raises(RefineError, match=text):
        InProcessRefiner(task, spec).refine(WEIGHTS, round=1, deadline_s=0.1)


@pytest.mark.slow
def test_a_trainer_killed_in_the_middle_is_a_refine_error_and_started_anew_it_serves(
    tmp_path: Path,
) -> None:
    with TrainerProcess(tmp_path / "first.log", "task.options.loss_s=0.02") as trainer:
        address = trainer.wait_ready()
        endless = _refiner(address, replace(SPEC, steps=100_000), restart_s=0)
        with (
            at_first_progress(trainer.kill) as killed_at,
            pytest.raises(RefineError, match=f"the trainer at {address}"),
        ):
            endless.refine(WEIGHTS, round=1, deadline_s=120)
        assert time.monotonic() - killed_at[0] < 10
    with pytest.raises(RefineError, match="cannot be reached"):
        _refiner(address).refine(WEIGHTS, round=1, deadline_s=20)
    with TrainerProcess(tmp_path / "second.log", f"address={address}") as trainer:
        assert trainer.wait_ready() == address
        refinement = _refiner(address).refine(WEIGHTS, round=1, deadline_s=60)
        expected = InProcessRefiner(TASK, SPEC).refine(WEIGHTS, round=1, deadline_s=60)
        np.testing.assert_array_equal(refinement.weights, expected.weights)


@pytest.mark.slow
def test_over_tls_the_token_opens_the_trainer_and_nothing_else_does(tmp_path: Path) -> None:
    server, client = make_tls(tmp_path)
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    token.write_text("open sesame\n")
    wrong.write_text("please\n")
    settings = (f"tls.cert={server.cert}", f"tls.key={server.key}", f"token_file={token}")
    with TrainerProcess(tmp_path / "log", *settings) as trainer:
        address = trainer.wait_ready()
        inside = _refiner(address, tls=client, token_file=token)
        assert inside.refine(WEIGHTS, round=1, deadline_s=60).num_steps == SPEC.steps
        for other in (wrong, None):
            with pytest.raises(RefineError, match="refused the token"):
                _refiner(address, tls=client, token_file=other).refine(
                    WEIGHTS, round=1, deadline_s=60
                )
        with pytest.raises(RefineError, match="agree on TLS"):
            _refiner(address, token_file=token).refine(WEIGHTS, round=1, deadline_s=60)
        assert "sesame" not in trainer.output


@pytest.mark.slow
def test_a_trainer_that_is_started_anew_in_time_is_asked_again(tmp_path: Path) -> None:
    kept = f"checkpoint_dir={tmp_path / 'kept'}"
    settings = ("task.options.loss_s=0.02", kept, "checkpoint_interval_s=0.1")
    spec = replace(SPEC, steps=60)
    with TrainerProcess(tmp_path / "first.log", *settings) as trainer:
        address = trainer.wait_ready()
        second: list[TrainerProcess] = []

        def start_anew() -> None:
            trainer.kill()
            second.append(TrainerProcess(tmp_path / "second.log", *settings, f"address={address}"))

        try:
            with at_first_progress(start_anew):
                refiner = _refiner(address, spec, restart_s=90)
                refinement = refiner.refine(WEIGHTS, round=1, deadline_s=120)
            assert "going on after step" in second[0].output
        finally:
            for each in second:
                each.kill()
    expected = InProcessRefiner(TASK, spec).refine(WEIGHTS, round=1, deadline_s=60)
    np.testing.assert_array_equal(refinement.weights, expected.weights)
    assert refinement.num_steps == 60


def test_a_trainer_lost_in_a_long_step_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Falls(TrainerServicer):
        def Refine(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
            list(request_iterator)
            yield PROGRESS
            if now[0] == 0:
                now[0] = 100.0
                context.abort(grpc.StatusCode.UNAVAILABLE, "a rank was lost")
            yield from (_summary(), BODY)

    server = make_server(2)
    add_TrainerServicer_to_server(Falls(), server)  # type: ignore[abstract]
    port = add_address(server, "127.0.0.1:0", TlsConfig())
    monkeypatch.setattr(refine, "time", SimpleNamespace(monotonic=lambda: now[0]))
    server.start()
    try:
        refiner = _refiner(f"127.0.0.1:{port}", restart_s=20)
        assert refiner.refine(WEIGHTS, round=1, deadline_s=600).seconds == 100
    finally:
        server.stop(0).wait()


def test_whoever_waits_for_a_lost_trainer_can_be_told_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Falls(TrainerServicer):
        def Refine(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
            list(request_iterator)
            yield pb.RefineResponse(progress=pb.RefineProgress(step=0, num_steps=5))
            context.abort(grpc.StatusCode.UNAVAILABLE, "a rank was lost")

    server = make_server(2)
    add_TrainerServicer_to_server(Falls(), server)  # type: ignore[abstract]
    port = add_address(server, "127.0.0.1:0", TlsConfig())
    refiner = _refiner(f"127.0.0.1:{port}", restart_s=600)
    monkeypatch.setattr(refine, "RETRY_S", 600)
    monkeypatch.setattr(refine._Patience, "tell", lambda *_: refiner.close())
    server.start()
    try:
        with pytest.raises(RefineError, match="the refinement was cancelled"):
            refiner.refine(WEIGHTS, round=1, deadline_s=600)
    finally:
        server.stop(0).wait()
