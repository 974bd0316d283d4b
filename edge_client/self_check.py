"""Whether this device really answers: asked of itself, the way that programs on it ask."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import grpc

from edge_client.inference import Serving
from edge_client.pulse import Pulse
from fedge.channels import UNIX_PREFIX, client_channel
from fedge.errors import ModelError
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

ANSWER_WITHIN_S = 10.0
NOT_CHECKED = "no self-check has passed yet"

log = logging.getLogger(__name__)


class SelfCheck:
    """Looks whether predictions are answered and the loops beside them live.

    A check asks the engine for a prediction, in the thread that checks: an engine that hangs
    keeps the check from passing. Then it calls the service through its socket.

    Args:
        serving: the engine that answers.
        socket: of the prediction service.
        pulses: of the loops, by name.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        serving: Serving,
        socket: Path,
        pulses: Mapping[str, Pulse],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._serving = serving
        self._socket = socket
        self._pulses = pulses
        self._clock = clock
        self._lock = threading.Lock()
        self._passed_at = clock()
        self._problem = NOT_CHECKED

    def run(self) -> str:
        """Check once; return what is wrong, or nothing. Hangs where the engine hangs."""
        problem = self._check()
        with self._lock:
            if problem and problem != self._problem:
                log.error("self-check: %s", problem)
            elif self._problem and not problem:
                log.info("self-check passed")
            self._problem = problem
            if not problem:
                self._passed_at = self._clock()
        return problem

    def problem(self, within_s: float) -> str:
        """Return what is wrong now, a check that has not come back for so long included."""
        with self._lock:
            problem, age_s = self._problem, self._clock() - self._passed_at
        if problem or age_s <= within_s:
            return problem
        return f"no self-check has passed for {age_s:.0f} s: predictions may hang"

    def snapshot(self) -> dict[str, float]:
        """Return the outcome of the last check, and how long ago one passed."""
        with self._lock:
            age_s = self._clock() - self._passed_at
            return {"healthy": float(not self._problem), "self_check_age_seconds": age_s}

    def _check(self) -> str:
        try:
            self._serving.probe()
        except ModelError as error:
            return f"the engine fails: {error}"
        for name, pulse in self._pulses.items():
            if pulse.late_s > 0:
                return f"the {name} loop should have been back {pulse.late_s:.0f} s ago"
        return self._call_service()

    def _call_service(self) -> str:
        """Ask for a prediction of nothing: refused without the engine, by the same handlers."""
        with client_channel(f"{UNIX_PREFIX}{self._socket}", TlsConfig()) as channel:
            try:
                inference_pb2_grpc.InferenceStub(channel).Predict(
                    inference_pb2.PredictRequest(), timeout=ANSWER_WITHIN_S
                )
            except grpc.RpcError as error:
                code = cast(
                    "Any", error
                ).code()  # it is a grpc.Call too, which its stubs do not say
                if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                    return f"the service on {self._socket} does not answer ({code.name})"
        return ""
