"""Refinement between rounds, as the round loop sees it: weights in, refined weights out.

Whatever goes wrong, here or at the trainer, is a `RefineError`: the aggregate stands and the
round goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, Protocol

import grpc
import numpy as np

from fedge.channels import client_channel, map_rpc_error, read_token
from fedge.chunks import iter_chunks, join_vector
from fedge.errors import ConfigError, RefineError, TransportError
from fedge.params import Layout, Vector
from fedge.task import Task
from fedge.weights import layout_of
from protos.fedge.v1 import trainer_pb2 as pb
from protos.fedge.v1.trainer_pb2_grpc import TrainerStub
from server.settings import RefineConfig, ServerConfig
from server.trainer.spec import Refinement, RefineSpec
from server.trainer.wire import order_for, order_to_proto

IN_PROCESS = "in-process"
RETRY_S = 0.5
MIN_DEADLINE_S = 0.01

_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
)

log = logging.getLogger(__name__)


class Refiner(Protocol):
    """Refines the global model between rounds."""

    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        """Return refined weights.

        Raises:
            RefineError: whatever went wrong; the given weights stand.
        """
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


def make_refiner(config: ServerConfig, task: Task) -> Refiner | None:
    """Return the refiner that the configuration names; None where refinement is off.

    Raises:
        ConfigError: the token cannot be read.
    """
    if not config.refine.trainer:
        return None
    spec = _spec_from(config)
    if config.refine.trainer == IN_PROCESS:
        return InProcessRefiner(task, spec)
    layout = layout_of(task.build_model())
    return GrpcRefiner(config.refine, config.run_name, layout, spec)


class InProcessRefiner:
    """Refines in this process, without a trainer: simulation and ``flwr run .``."""

    def __init__(self, task: Task, spec: RefineSpec) -> None:
        # Meshes take a second to import, and a server that has a trainer needs none.
        from server.trainer.alone import refining_alone

        self._spec = spec
        self._refining = refining_alone(task)

    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        """Return refined weights."""
        spec = replace(self._spec, round=round, deadline_s=deadline_s)
        try:
            return self._refining.run(weights, spec)
        except RefineError:
            raise
        except ConfigError as error:  # an objective or optimizer that there is not
            raise RefineError(str(error)) from error
        except Exception as error:  # a task's own code may raise anything; the round must go on
            log.exception("refinement of round %d failed", round)
            raise RefineError(f"refinement failed: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Do nothing."""


class GrpcRefiner:
    """Asks the cloud trainer; each refinement opens a connection of its own.

    A channel kept open would remember a trainer that was down and refuse for a while after it is
    back.

    Raises:
        ConfigError: the token cannot be read.
    """

    def __init__(
        self, config: RefineConfig, run_name: str, layout: Layout, spec: RefineSpec
    ) -> None:
        self._address = config.trainer
        self._tls = config.tls
        self._token = None if config.token_file is None else read_token(config.token_file)
        self._run_name = run_name
        self._layout = layout
        self._spec = spec
        self._restart_s = config.restart_s
        self._who = f"the trainer at {self._address}"
        self._closed = threading.Event()
        self._responses: Any = None

    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        """Return refined weights whose digest was checked.

        A trainer that is lost in mid-refinement is asked again until it is back.
        """
        started = time.monotonic()
        patience = _Patience(self._restart_s, started + deadline_s)
        while True:
            left_s = started + deadline_s - time.monotonic()
            spec = replace(self._spec, round=round, deadline_s=max(left_s, MIN_DEADLINE_S))
            try:
                refinement = self._ask(weights, spec, patience)
                return replace(refinement, seconds=time.monotonic() - started)
            except grpc.RpcError as error:
                if not patience.lasts(error):
                    raise RefineError(_explain(error, self._who)) from error
                patience.tell(f"{_explain(error, self._who)}; asking again")
            except TransportError as error:
                raise RefineError(f"{self._who} answered nonsense: {error}") from error
            if self._closed.wait(RETRY_S):
                raise RefineError("the refinement was cancelled")

    def close(self) -> None:
        """Cancel the refinement that another thread may wait for, here and at the trainer."""
        self._closed.set()
        if self._responses is not None:
            self._responses.cancel()

    def _ask(self, weights: Vector, spec: RefineSpec, patience: _Patience) -> Refinement:
        with client_channel(self._address, self._tls, self._token) as channel:
            responses = self._responses = TrainerStub(channel).Refine(
                self._requests(weights, spec), timeout=spec.deadline_s
            )
            if self._closed.is_set():  # before there was this call to cancel
                self._responses.cancel()
            summary = _read_summary(responses, patience)
            refined = self._read_weights(responses, summary)
        return Refinement(
            refined, summary.steps, summary.seconds, summary.loss_first, summary.loss_last
        )

    def _requests(self, weights: Vector, spec: RefineSpec) -> Iterator[pb.RefineRequest]:
        order = order_for(self._run_name, self._layout, weights, spec)
        yield pb.RefineRequest(spec=order_to_proto(order))
        for chunk in iter_chunks(weights):
            yield pb.RefineRequest(weights=chunk)

    def _read_weights(
        self, responses: Iterable[pb.RefineResponse], summary: pb.RefineSummary
    ) -> Vector:
        size = self._layout.size_bytes
        if summary.size_bytes != size:
            raise TransportError(f"{summary.size_bytes} bytes announced, the model has {size}")
        chunks = (_part(response, "weights") for response in responses)
        refined, digest = join_vector(chunks, size_bytes=size, what="refined weights")
        if digest != summary.digest:
            raise TransportError("the refined weights do not match their digest")
        if not _all_finite(refined, summary):
            raise TransportError("the refined weights or losses are not finite")
        return refined


def _spec_from(config: ServerConfig) -> RefineSpec:
    names = {field.name for field in fields(RefineSpec)} - {"seed", "round"}
    wanted = {name: getattr(config.refine, name) for name in names}
    return RefineSpec(**wanted, seed=config.seed)


class _Patience:
    """How long a trainer that had accepted the order, and was lost since, is waited for.

    Args:
        restart_s: seconds from when it was lost; a step before that may have taken longer.
        ends: time (monotonic) at which all waiting ends.
    """

    def __init__(self, restart_s: float, ends: float) -> None:
        self._restart_s = restart_s
        self._ends = ends
        self._accepted = False
        self._lost: float | None = None
        self._told = False

    def hear(self) -> None:
        """Note that the trainer works on the order."""
        self._accepted = True
        self._lost = None
        self._told = False

    def tell(self, what: str) -> None:
        """Log why it is waited for, once for each time that it is lost."""
        if not self._told:
            log.warning("%s", what)
        self._told = True

    def lasts(self, error: grpc.RpcError) -> bool:
        """Tell whether it may come back from what was raised."""
        call: Any = error
        if not self._accepted or not isinstance(call, grpc.Call):
            return False
        now = time.monotonic()
        self._lost = now if self._lost is None else self._lost
        waits = now < min(self._lost + self._restart_s, self._ends)
        return waits and call.code() == grpc.StatusCode.UNAVAILABLE


def _read_summary(responses: Iterable[pb.RefineResponse], patience: _Patience) -> pb.RefineSummary:
    for response in responses:
        if response.WhichOneof("part") != "progress":
            summary: pb.RefineSummary = _part(response, "summary")
            return summary
        patience.hear()
        if response.progress.step > 0:
            told = response.progress
            log.debug("refinement: step %d, loss %.4f", told.step, told.loss)
    raise TransportError("the answer ended before its summary")


def _all_finite(refined: Vector, summary: pb.RefineSummary) -> bool:
    losses = (summary.loss_first, summary.loss_last)
    return bool(np.isfinite(refined).all() and np.isfinite(losses).all())


def _part(response: pb.RefineResponse, name: str) -> Any:
    found = response.WhichOneof("part")
    if found != name:
        raise TransportError(f"expected {name}, got {found}")
    return getattr(response, name)


def _explain(error: grpc.RpcError, who: str) -> str:
    """Say what happened; what the trainer itself refused, in its own words."""
    call: Any = error  # what grpc raises is a grpc.Call too; its stubs do not say so
    if isinstance(call, grpc.Call) and call.code() in _REFUSALS:
        return f"{who} refused or failed: {call.details()}"
    return str(map_rpc_error(error, who))
