"""The daemon's end of the training process: start it, talk to it, replace it when it dies."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from edge_client.framing import receive_frame, send_frame
from edge_client.task_description import Description
from edge_client.worker import Ask, Proposal, Trained
from edge_client.worker_frames import (
    ProcessSettings,
    ask_to_json,
    error_from_json,
    proposal_from_json,
    vectors_to_payload,
)
from fedge.children import QUIET_ENVIRONMENT, stop_child
from fedge.config import to_tree
from fedge.errors import ConfigError, DeadlineExceeded, FedgeError, OutOfMemory, TransportError
from fedge.messages import Evaluation
from fedge.params import Vector
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters

START_S = 120.0
GRACE_S = 60.0
STOP_S = 1.0
FRUITLESS_STARTS = 3
"""How many times in a row a round's child may die without a step before the round is given up."""

_log = logging.getLogger(__name__)


class BrokeOff(TransportError):
    """A command whose child died over it."""


class ProcessWorker:
    """A `Worker` whose work happens in a child process that lives as long as the daemon.

    A child that died is replaced, and goes on with the round it was training after the last step
    that was kept. Call `start` from a thread that lives as long as the daemon: the kernel ends the
    child with the thread that made it.
    """

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._ready = False
        self._stopped = threading.Event()
        self._resumed_at = 0
        self._paused = ""

    @property
    def problem(self) -> str:
        """Why training waits in the middle of a round; empty where it does not."""
        return self._paused and f"training is paused: {self._paused}"

    @property
    def pid(self) -> int | None:
        """Process id of the child, None when there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child without waiting until it is ready (about two seconds: torch)."""
        with self._lock:
            self._start()

    def stop(self) -> None:
        """End the child at once, whatever it does; a command under way fails."""
        self._stopped.set()
        process = self._process
        if process is not None:
            stop_child(process, grace_s=STOP_S)

    def describe(self) -> Description:
        """Return what the child says about its task.

        Raises:
            FedgeError: the task cannot be loaded.
        """
        answer, _ = self._call({"command": "describe"})
        return Description(**{**answer, "input_shape": tuple(answer["input_shape"])})

    def propose(self, ask: Ask) -> Proposal:
        """Return what a round would do and cost; see `Worker.propose`."""
        answer, _ = self._call({"command": "propose", "ask": ask_to_json(ask)})
        return proposal_from_json(answer)

    def train(
        self,
        layout_digest: str,
        weights: Vector,
        hyper: Hyperparameters,
        plan: DpPlan | None,
        correction: Vector | None = None,
        *,
        round_id: str = "",
    ) -> Trained:
        """Train from the given weights; see `Worker.train`."""
        vectors = [weights] if correction is None else [weights, correction]
        header = {
            "command": "train",
            "layout_digest": layout_digest,
            "hyper": asdict(hyper),
            "plan": None if plan is None else asdict(plan),
            "round_id": round_id,
            "num_vectors": len(vectors),
        }
        answer, delta, lost_s = self._train_through_kills(header, vectors)
        seconds = lost_s + answer["seconds"]
        return Trained(np.frombuffer(delta, np.float32), answer["num_steps"], seconds)

    def _train_through_kills(
        self, header: dict[str, Any], vectors: list[Vector]
    ) -> tuple[dict[str, Any], bytearray, float]:
        """Ask again for a round whose child died, for as long as it gets on.

        Returns:
            The answer, what came with it, and the seconds until it was asked for the last time.
        """
        began = time.monotonic()
        self._resumed_at, fruitless = 0, 0
        while True:
            before, lost_s = self._resumed_at, time.monotonic() - began
            left_s = max(0.0, self._settings.training.deadline_s - lost_s)
            try:
                answer, delta = self._call({**header, "deadline_s": left_s}, *vectors)
            except BrokeOff:
                fruitless = 1 if self._resumed_at > before else fruitless + 1
                is_over = not header["round_id"] or fruitless >= FRUITLESS_STARTS
                if is_over or self._stopped.is_set():
                    raise
            else:
                return answer, delta, lost_s

    def evaluate(self, layout_digest: str, weights: Vector) -> Evaluation | None:
        """Return true metrics of the holdout; see `Worker.evaluate`."""
        answer, _ = self._call({"command": "evaluate", "layout_digest": layout_digest}, weights)
        return None if answer["evaluation"] is None else Evaluation(**answer["evaluation"])

    def _call(self, header: dict[str, Any], *vectors: Vector) -> tuple[dict[str, Any], bytearray]:
        """Send a command and return its answer; replace a child that breaks off."""
        payload = vectors_to_payload(*vectors) if vectors else b""
        with self._lock:
            try:
                connection = self._running()
                connection.settimeout(self._settings.training.deadline_s + GRACE_S)
                send_frame(connection, header, payload)
                answer, content = self._answer(connection)
            except TimeoutError as error:
                self._replace()
                raise DeadlineExceeded(
                    f"the training process did not finish {header['command']!r} in time and was "
                    "ended; raise training.deadline_s or train on less"
                ) from error
            except (EOFError, OSError, ValueError) as error:
                status = self._replace()
                raise BrokeOff(
                    f"the training process broke off during {header['command']!r} (exit status "
                    f"{status}); it is started again, and this device's log says more"
                ) from error
            if "error" in answer:
                raised = error_from_json(answer["error"])
                if isinstance(raised, OutOfMemory):
                    self._replace()  # what it holds, it will not give back
                raise raised
        return answer, content

    def _answer(self, connection: socket.socket) -> tuple[dict[str, Any], bytearray]:
        """Return the answer to a command; take note of what the child says before it."""
        give_up = time.monotonic() + self._settings.training.deadline_s + GRACE_S
        while True:
            connection.settimeout(max(0.001, give_up - time.monotonic()))
            answer, content = receive_frame(connection)
            if "note" not in answer:
                return answer, content
            self._take_note(answer["note"])

    def _take_note(self, note: dict[str, Any]) -> None:
        if "resumed_at" in note:
            self._resumed_at = note["resumed_at"]
            _log.info("training goes on after step %d", self._resumed_at)
        if "paused" in note:
            self._paused = note["paused"]
            _log.info("%s", self.problem or "training goes on")

    def _running(self) -> socket.socket:
        """Return the connection to a child that is ready, starting one if need be."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._connection is not None
        if not self._ready:
            self._connection.settimeout(START_S)
            answer, _ = receive_frame(self._connection)
            if "error" in answer:
                raise self._cannot_start(error_from_json(answer["error"]))
            self._ready = True
        return self._connection

    def _cannot_start(self, error: FedgeError) -> FedgeError:
        self._discard()
        return error

    def _start(self) -> None:
        self._discard()
        if self._stopped.is_set():
            raise TransportError("this device is stopping")
        ours, theirs = socket.socketpair()
        # No preexec_fn: it would fork, and gRPC's threads are running by now. The child asks
        # for its death signal itself.
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "edge_client.training_process"),
                    *(str(theirs.fileno()), str(os.getpid())),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **QUIET_ENVIRONMENT, **_thread_limits(self._settings)},
                # A group of its own, so that Ctrl-C passes it by, but the daemon's session: where
                # Linux shares time by session (autogroups), `nice` counts within one alone.
                process_group=0,
            )
        except OSError as error:
            ours.close()
            raise ConfigError(f"the training process cannot be started: {error}") from error
        finally:
            theirs.close()
        self._connection, self._ready = ours, False
        with contextlib.suppress(OSError):  # a child that is gone already is found out on use
            send_frame(ours, to_tree(self._settings))

    def _replace(self) -> int | None:
        """Clear away a child that broke off and start the next; return its exit status."""
        status = self._discard()
        if not self._stopped.is_set():
            _log.warning("the training process ended with status %s; starting it again", status)
            self._start()
        return status

    def _discard(self) -> int | None:
        status = None
        self._paused = ""
        if self._process is not None:
            status = stop_child(self._process, grace_s=STOP_S)
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        return status


def _thread_limits(settings: ProcessSettings) -> dict[str, str]:
    """Return what the numeric libraries read when they are imported."""
    number = str(settings.training.num_threads)
    return {f"{library}_NUM_THREADS": number for library in ("OMP", "OPENBLAS", "MKL")}
