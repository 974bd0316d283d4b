"""The training process: torch, Opacus and the samples, at the lowest priority.

The daemon starts it once (``python -m edge_client.training_process FD PID``) and speaks to it in
frames over an inherited socket. It never outlives the daemon, opens no other connection, and its
crash costs the daemon nothing but the round.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

import numpy as np

from edge_client.conditions import CHECK_INTERVAL_S, Gate
from edge_client.framing import receive_frame, send_frame
from edge_client.opened_later import OpenedLater
from edge_client.process_limits import (
    MIB,
    half_of_memory,
    is_out_of_memory,
    lift_memory_limit,
    limit_memory,
    step_back,
)
from edge_client.round_steps import RoundSteps, round_digest
from edge_client.sample_reader import SampleReader
from edge_client.task_description import Description
from edge_client.worker import InProcessWorker
from edge_client.worker_frames import (
    ProcessSettings,
    ask_from_json,
    error_to_json,
    plan_from_json,
    vectors_from_payload,
)
from fedge.children import die_with_parent
from fedge.config import build
from fedge.errors import FedgeError, OutOfMemory, TrainingPaused, TransportError
from fedge.logs import setup_logging
from fedge.privacy.accounting import Spend, epsilon
from fedge.settings import Hyperparameters
from fedge.task import load_task

IDLE_CHECK_S = 0.5

_log = logging.getLogger(__name__)


class TrainingServer:
    """Answers one command after another until the daemon goes away.

    Args:
        gate: says when training is to wait; None takes that of the settings.
    """

    def __init__(
        self, connection: socket.socket, settings: ProcessSettings, gate: Gate | None = None
    ) -> None:
        self._connection = connection
        self._task = load_task(settings.task.name, **settings.task.options)
        reader = OpenedLater(lambda: SampleReader(settings.samples_path, settings.store))
        self._samples = cast("SampleReader", reader)
        self._settings = settings
        self._gate = Gate.of(settings.training) if gate is None else gate
        self._deadline: float | None = None
        self._worker = InProcessWorker(
            self._task,
            lambda split: self._task.device_data(self._samples, split),
            should_stop=self._should_stop,
        )
        self._commands = {
            "describe": self._describe,
            "propose": self._propose,
            "train": self._train,
            "evaluate": self._evaluate,
        }

    def serve(self) -> None:
        """Answer until the daemon closes the connection; warm up once nothing waits."""
        warm = False
        while True:
            # With conditions it stays awake, to know of the time before a round is asked for.
            wait_s = IDLE_CHECK_S if self._gate or not warm else None
            while not _is_readable(self._connection, wait_s):
                self._gate.reason()
                if not warm:
                    self._warm_up()
                    warm = True
            try:
                header, payload = receive_frame(self._connection)
            except (EOFError, OSError):
                return
            answer, content = self._answer(header, payload)
            send_frame(self._connection, answer, content)

    def _warm_up(self) -> None:
        """Get ready for a round; say now, and not in a round alone, why there can be none."""
        try:
            warm_up()
            _ = self._worker.trainer
        except FedgeError as error:
            _log.error("this device predicts and cannot train: %s", error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _log.error("this device predicts and cannot train: %s", self._out_of_memory(error))

    def _answer(self, header: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], bytes]:
        try:
            return self._commands[header["command"]](header, payload)
        except FedgeError as error:
            return {"error": error_to_json(error)}, b""
        except Exception as error:
            if is_out_of_memory(error):
                return {"error": error_to_json(self._out_of_memory(error))}, b""
            # A task is user code and may raise anything. Its text can hold sample values, so it
            # goes to this device's log, and only the type goes on towards the server.
            _log.exception("command %s failed", header.get("command"))
            text = f"{type(error).__name__} in the training process; the device's log says more"
            return {"error": error_to_json(TransportError(text))}, b""

    def _out_of_memory(self, error: Exception) -> OutOfMemory:
        lift_memory_limit()
        limit = self._settings.training.max_memory_mib or half_of_memory() // MIB
        _log.error("out of memory: %.300s", error)
        return OutOfMemory(
            f"training needs more than the {limit} MiB that training.max_memory_mib allows: raise "
            "it, or ask for smaller batches"
        )

    def _describe(self, _: dict[str, Any], __: bytearray) -> tuple[dict[str, Any], bytes]:
        return asdict(Description.of(self._task)), b""

    def _propose(self, header: dict[str, Any], _: bytearray) -> tuple[dict[str, Any], bytes]:
        reason = self._gate.reason()
        if reason:
            raise TrainingPaused(f"this device does not train now: {reason}")
        return asdict(self._worker.propose(ask_from_json(header["ask"]))), b""

    def _train(self, header: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], bytes]:
        _ = self._worker.trainer  # made before the clock runs
        self._deadline = time.monotonic() + header["deadline_s"]
        weights, *correction = vectors_from_payload(payload, header["num_vectors"])
        with self._keeper(header, payload) as keeper:
            trained = self._worker.train(
                header["layout_digest"],
                weights,
                build(Hyperparameters, header["hyper"]),
                plan_from_json(header["plan"]),
                *correction,
                keeper=keeper,
            )
        if trained.num_steps < 1:
            raise TransportError(
                "the deadline passed before the first training step; raise training.deadline_s"
            )
        answer = {"num_steps": trained.num_steps, "seconds": trained.seconds}
        return answer, trained.delta.tobytes()

    def _evaluate(self, header: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], bytes]:
        weights = np.frombuffer(payload, np.float32)
        evaluation = self._worker.evaluate(header["layout_digest"], weights)
        return {"evaluation": None if evaluation is None else asdict(evaluation)}, b""

    @contextmanager
    def _keeper(self, header: dict[str, Any], payload: bytearray) -> Iterator[RoundSteps | None]:
        """Open what is kept of this round, and tell the daemon from which step it goes on."""
        path = self._settings.steps_path
        if path is None or not header["round_id"]:
            yield None
            return
        told = {key: value for key, value in header.items() if key != "deadline_s"}
        keeper = RoundSteps(path, round_digest(told, payload))
        snapshot = keeper.recall()
        if snapshot is not None:
            self._note(resumed_at=snapshot.progress.num_steps)
        try:
            yield keeper
        finally:
            keeper.close()

    def _should_stop(self) -> bool:
        """Wait while training is paused; tell whether the round's deadline has passed."""
        self._end_with_daemon(0)
        paused = False
        while (reason := self._gate.reason()) and not self._is_late():
            if not paused:
                self._note(paused=reason)
            paused = True
            self._end_with_daemon(CHECK_INTERVAL_S)
        if paused:
            self._note(paused="")
        return self._is_late()

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _end_with_daemon(self, timeout_s: float) -> None:
        """End this process when the daemon has gone, or goes within the timeout."""
        if not _is_readable(self._connection, timeout_s):
            return
        if not self._connection.recv(1, socket.MSG_PEEK):
            sys.exit(0)

    def _note(self, **what: Any) -> None:
        """Tell the daemon, before the answer, how a command is getting on."""
        send_frame(self._connection, {"note": what})


def warm_up() -> None:
    """Import now, and not in the first round, what torch and Opacus import on first use."""
    import torch

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0).step()
    epsilon([Spend(1.0, 0.5, 1)], 1e-5)


def _is_readable(connection: socket.socket, timeout_s: float | None) -> bool:
    return bool(select.select([connection], [], [], timeout_s)[0])


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux; elsewhere EOF does it)."""
    die_with_parent()
    if os.getppid() != parent:
        sys.exit(0)


def main() -> None:
    """Run until the daemon goes away."""
    die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which stops us
    connection = socket.socket(fileno=int(sys.argv[1]))
    header, _ = receive_frame(connection)
    settings = build(ProcessSettings, header)
    try:
        step_back(settings.training)
        import torch

        torch.set_num_threads(settings.training.num_threads)
        limit_memory(settings.training)
        server = TrainingServer(connection, settings)
    except FedgeError as error:
        send_frame(connection, {"error": error_to_json(error)})
        return
    send_frame(connection, {"ready": os.getpid()})
    server.serve()


if __name__ == "__main__":
    setup_logging("fedge-edge", part="training")
    main()
