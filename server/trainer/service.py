"""The gRPC service Trainer: orders in, progress and refined weights out."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any, NoReturn

import grpc

from fedge.chunks import iter_chunks
from fedge.config import build
from fedge.errors import ConfigError, RefineError
from fedge.params import Vector
from fedge.protocol import PROTOCOL_VERSION
from protos.fedge.v1 import trainer_pb2 as pb
from protos.fedge.v1.trainer_pb2_grpc import TrainerServicer
from server.trainer.admission import Refused, check_order, receive_weights
from server.trainer.jobs import Job, JobRunner
from server.trainer.loop import Control
from server.trainer.spec import CutShort, Diverged, Refinement, RefineSpec
from server.trainer.wire import Order, summary_of

PROGRESS_INTERVAL_S = 0.25

log = logging.getLogger(__name__)


class TrainerService(TrainerServicer):
    """Carries out one order after the other; the last result is kept and repeated on demand.

    Args:
        max_model_bytes: largest model accepted, checked before its bytes are taken.
    """

    def __init__(self, runner: JobRunner, max_model_bytes: int) -> None:
        self._runner = runner
        self._max_model_bytes = max_model_bytes
        self._kept: tuple[Order, Refinement] | None = None

    def Refine(  # noqa: N802
        self, request_iterator: Iterator[pb.RefineRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.RefineResponse]:
        """Refine the weights that follow the spec; the same order gets the same answer."""
        try:
            order, weights = self._admit(request_iterator)
            kept = self._kept
            if kept is not None and kept[0] == order.key:
                refinement = kept[1]
            else:
                call = _Call(context)
                future = call.start(self._runner, Job(order.spec, key=order.key_digest), weights)
                yield from call.progress()
                refinement = _outcome(future)
                self._kept = (order.key, refinement)
        except (Refused, RefineError) as error:
            _abort(context, error)
        log.info(
            "round %d of %s: %d steps in %.2f s, loss %.4f to %.4f",
            order.spec.round,
            order.run_name,
            refinement.num_steps,
            refinement.seconds,
            refinement.loss_first,
            refinement.loss_last,
        )
        yield pb.RefineResponse(summary=summary_of(refinement))
        for chunk in iter_chunks(refinement.weights):
            yield pb.RefineResponse(weights=chunk)

    def Search(  # noqa: N802
        self, request_iterator: Iterator[pb.SearchRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SearchResponse]:
        """Score each candidate on the proxy data's held-out split; diverged is infinite."""
        try:
            order, weights = self._admit(request_iterator)
            for request in request_iterator:
                candidate = _part(request, "candidate")
                loss = self._score(_Call(context), _spec_of(order, candidate), weights)
                yield pb.SearchResponse(candidate=candidate.id, loss=loss)
        except (Refused, RefineError) as error:
            _abort(context, error)

    def Status(  # noqa: N802
        self,
        request: pb.TrainerStatusRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> pb.TrainerStatusResponse:
        """Say what is refined here."""
        return pb.TrainerStatusResponse(
            protocol=PROTOCOL_VERSION,
            task=self._runner.task.name,
            layout_digest=self._runner.layout.digest,
            world_size=self._runner.ranks.size,
            refinements=self._runner.num_done,
        )

    def _admit(self, requests: Iterator[Any]) -> tuple[Order, Vector]:
        """Take the spec and the weights off the stream, and no more than that."""
        first = next(requests, None)
        if first is None:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the stream ended before the spec")
        order = check_order(_part(first, "spec"), self._runner.layout, self._max_model_bytes)
        return order, receive_weights(_weight_chunks(requests, order.size_bytes), order)

    def _score(self, call: _Call, spec: RefineSpec, weights: Vector) -> float:
        try:
            refinement = _outcome(call.start(self._runner, Job(spec, "search"), weights))
        except Diverged:
            return math.inf
        return self._runner.score(refinement.weights, spec.seed)


class _Call:
    """What ties a job to the call that asked for it: progress, and an end when the caller leaves.

    Progress is thinned out to a few messages a second; the last step is always told.
    """

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._messages: SimpleQueue[pb.RefineProgress | None] = SimpleQueue()
        self._left = threading.Event()
        self._told = -math.inf
        if not context.add_callback(self._left.set):
            self._left.set()

    def start(self, runner: JobRunner, job: Job, weights: Vector) -> Future[Refinement]:
        """Queue the job; it stops at its next step once the caller has left."""
        self._report(0, job.spec.steps, 0.0)
        future = runner.start(job, weights, Control(self._report, self._left.is_set))
        future.add_done_callback(lambda _: self._messages.put(None))
        return future

    def progress(self) -> Iterator[pb.RefineResponse]:
        """Yield progress until the job has ended."""
        while (message := self._messages.get()) is not None:
            yield pb.RefineResponse(progress=message)

    def _report(self, step: int, num_steps: int, loss: float) -> None:
        now = time.monotonic()
        if step == num_steps or now - self._told > PROGRESS_INTERVAL_S:
            self._told = now
            self._messages.put(pb.RefineProgress(step=step, num_steps=num_steps, loss=loss))


def _outcome(future: Future[Refinement]) -> Refinement:
    try:
        return future.result()
    except CancelledError as error:
        raise RefineError("the trainer is shutting down") from error


def _part(message: Any, name: str) -> Any:
    """Return the one part that a message must carry here."""
    found = message.WhichOneof("part")
    if found != name:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"expected {name}, got {found}")
    return getattr(message, name)


def _weight_chunks(requests: Iterator[Any], size_bytes: int) -> Iterator[bytes]:
    """Yield chunks until the announced size is reached: what follows is not for us."""
    num_bytes = 0
    while num_bytes < size_bytes and (message := next(requests, None)) is not None:
        chunk: bytes = _part(message, "weights")
        num_bytes += len(chunk)
        yield chunk


def _spec_of(order: Order, candidate: pb.Candidate) -> RefineSpec:
    names = ("learning_rate", "momentum", "batch_size", "steps")
    try:
        return build(
            RefineSpec, asdict(order.spec) | {name: getattr(candidate, name) for name in names}
        )
    except ConfigError as error:
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT, f"candidate {candidate.id}: {error}"
        ) from error


def _abort(context: grpc.ServicerContext, error: Refused | RefineError) -> NoReturn:
    log.warning("refused or failed: %s", error)
    context.abort(_code_of(error), str(error))
    raise AssertionError("abort raises")


def _code_of(error: Refused | RefineError) -> grpc.StatusCode:
    """Return what tells the caller whether to ask again."""
    if isinstance(error, Refused):
        return error.code
    again = isinstance(error, CutShort)
    return grpc.StatusCode.UNAVAILABLE if again else grpc.StatusCode.ABORTED
