"""Versions swapped in under load: what it costs, and whether any answer suffers.

Signed versions go through the daemon's own `Rollout` (signature, hashes, patch, interpreter, known
answers, files synced, pointer) while clients ask for predictions in the same process and over gRPC
on a Unix socket. Each answer is compared with what the version that it names must answer.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.harness import CannotRun, progress
from benchmarks.swap_versions import Architecture, SignedVersion, architecture, sign_versions
from edge_client.crash_guard import CrashGuard
from edge_client.engine_maker import EngineMaker
from edge_client.inference import Array, Serving, Version
from edge_client.model_store import ModelStore
from edge_client.responsive import be_responsive
from edge_client.rollout import Rollout
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService, serve
from edge_client.settings import InferenceConfig, ModelsConfig, StoreConfig
from edge_client.tensors import make_tensor, read_tensor
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

SIZES = {"1mb": 478, "10mb": 1586}  # hidden units
NUM_SWAPS = 500  # of each size
QUICK_SWAPS = 10
NUM_VERSIONS = 8  # different weights, published over and over as new rounds
PAUSE_S = 0.001  # between two requests of one client
SWAP_PAUSE_S = 0.25  # still far more often than any federation commits rounds
TOLERANCE = 1e-4
IDLE_SHARE = 0.04  # seconds a swap
START_S = 60.0


@dataclass
class Answers:
    """What one client saw."""

    latencies_ms: list[float] = field(default_factory=list)
    failed: int = 0
    mixed: int = 0


@dataclass(frozen=True)
class Expected:
    """What each version answers, by its digest."""

    inputs: Array
    answers: dict[str, Array]

    def fits(self, which: int, output: Array, digest: str) -> bool:
        """Tell whether an answer is exactly that of the version it names."""
        if digest not in self.answers:
            return False
        expected = self.answers[digest][which]
        return bool(np.abs(output - expected).max() <= TOLERANCE * np.abs(expected).max())


Ask = Callable[[Array], tuple[Array, str]]
"""Returns an answer and the digest of the version that it names."""


def measure(*, quick: bool) -> dict[str, Any]:
    """Return failed and mixed answers, latencies beside swaps, and what a swap takes."""
    be_responsive()  # as the daemon is
    swaps = QUICK_SWAPS if quick else NUM_SWAPS
    results = {}
    for name, hidden in SIZES.items():
        results[name] = _measure_size(architecture(hidden), swaps)
        progress(f"{name}: {results[name]}")
    return {
        "setup": (
            f"MLPs of 1 and 10 MB, {swaps} signed versions each taken by the daemon's rollout "
            f"{1000 * SWAP_PAUSE_S:g} ms apart; two clients, one in the process and one over gRPC "
            f"on a Unix socket from a process of its own, ask {1000 * PAUSE_S:g} ms after each "
            "answer; p99.9 is the worst of both clients and both sizes, during swaps alone; swap "
            "is patch, interpreter and its first call, a median; take is all of it, signature to "
            "pointer"
        ),
        "swaps": sum(result["swaps"] for result in results.values()),
        "failed": sum(result["failed"] for result in results.values()),
        "mixed": sum(result["mixed"] for result in results.values()),
        "p999_ms": max(result["p999_ms"] for result in results.values()),
        "p999_idle_ms": max(result["p999_idle_ms"] for result in results.values()),
        "swap_ms_1mb": results["1mb"]["swap_ms"],
        "swap_ms_10mb": results["10mb"]["swap_ms"],
        "table": results,
    }


def _measure_size(model: Architecture, swaps: int) -> dict[str, Any]:
    key = Ed25519PrivateKey.generate()
    versions = sign_versions(model, key, NUM_VERSIONS)
    with tempfile.TemporaryDirectory(prefix="fedge-swap-") as folder:
        return _measure_device(model, key, versions, Path(folder), swaps)


def _measure_device(
    model: Architecture,
    key: Ed25519PrivateKey,
    versions: list[SignedVersion],
    folder: Path,
    swaps: int,
) -> dict[str, Any]:
    serving = Serving()
    store = ModelStore(folder / "models", key.public_key())
    guard = CrashGuard(folder / "models", max_crashes=3, max_kills=20)
    rollout = Rollout(store, serving, ModelsConfig(), guard=guard)
    first = versions[0].as_round(0, key)
    rollout.take(first.content, first.signature, first.blobs)
    socket, takes = folder / "inference.sock", list[float]()
    with SampleDatabase(folder / "samples.db", StoreConfig()) as samples:
        server = serve(InferenceService(serving, samples, DeviceStatus), socket, InferenceConfig())
        try:
            idle = _load(model, serving, socket, lambda: time.sleep(IDLE_SHARE * swaps))
            busy = _load(
                model, serving, socket, lambda: _swap(rollout, versions, key, swaps, takes)
            )
        finally:
            server.stop(None).wait()
    return {
        "swaps": len(takes),
        "failed": sum(answers.failed for answers in busy.values()),
        "mixed": sum(answers.mixed for answers in busy.values()),
        "p999_ms": max(_percentile(answers, 99.9) for answers in busy.values()),
        "p999_idle_ms": max(_percentile(answers, 99.9) for answers in idle.values()),
        "predictions": sum(len(answers.latencies_ms) for answers in busy.values()),
        "latency_ms": {
            name: {
                "idle_p50": _percentile(idle[name], 50),
                "idle_p999": _percentile(idle[name], 99.9),
                "swapping_p50": _percentile(busy[name], 50),
                "swapping_p99": _percentile(busy[name], 99),
                "swapping_p999": _percentile(busy[name], 99.9),
                "swapping_max": _percentile(busy[name], 100),
            }
            for name in busy
        },
        "swap_ms": _time_swap(model, 10 if swaps == QUICK_SWAPS else 100),
        "take_ms": float(np.median(takes)),
        "weights_bytes": model.layout.size_bytes,
    }


def _swap(
    rollout: Rollout,
    versions: list[SignedVersion],
    key: Ed25519PrivateKey,
    swaps: int,
    takes: list[float],
) -> None:
    for round in range(1, swaps + 1):
        version = versions[round % len(versions)].as_round(round, key)
        started = time.perf_counter()
        store, blobs = rollout.store, version.blobs.items()
        missing = {digest: blob for digest, blob in blobs if not store.has_blob(digest)}
        rollout.take(version.content, version.signature, missing)
        takes.append(1000 * (time.perf_counter() - started))
        time.sleep(SWAP_PAUSE_S)


def _time_swap(model: Architecture, repeats: int) -> float:
    """Return the median ms from weights in memory to an engine that has answered once."""
    times, maker = [], EngineMaker(model.patcher)
    for number in range(repeats):
        weights = model.weights(number)
        started = time.perf_counter()
        maker.engine(model.layout, weights, Version(1, ""))
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def _load(
    model: Architecture, serving: Serving, socket: Path, work: Callable[[], None]
) -> dict[str, Answers]:
    """Return what a client in this process and one of its own saw while some work was done."""
    spawn = multiprocessing.get_context("spawn")
    done, ready, ours = spawn.Event(), spawn.Event(), Answers()
    receiver, sender = spawn.Pipe(duplex=False)
    expect = Expected(model.inputs, model.answers)
    process = spawn.Process(target=_ask_from_outside, args=(socket, expect, ready, done, sender))
    thread = threading.Thread(target=_ask_on, args=(expect, _ask_in_process(serving), ours, done))
    process.start()
    try:
        if not ready.wait(START_S):
            raise CannotRun("the client's process does not start")
        thread.start()
        work()
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
    theirs: Answers = receiver.recv()
    process.join()
    return {"process": ours, "grpc": theirs}


def _ask_from_outside(
    socket: Path, expect: Expected, ready: Event, done: Event, sender: Connection
) -> None:
    """Be a client in a process of its own."""
    answers = Answers()
    ask = _ask_over_grpc(socket)
    _ask_on(expect, ask, Answers(), done, most=1)  # connects
    ready.set()
    _ask_on(expect, ask, answers, done)
    sender.send(answers)


def _ask_on(
    expect: Expected, ask: Ask, answers: Answers, done: Event, most: int | None = None
) -> None:
    """Ask again and again; compare each answer with that of exactly the version it names."""
    asked = 0
    while not done.is_set() and asked != most:
        which = asked % len(expect.inputs)
        asked += 1
        started = time.perf_counter()
        try:
            output, digest = ask(expect.inputs[which])
        except Exception as error:
            answers.failed += 1
            progress(f"failed: {error}")
        else:
            answers.latencies_ms.append(1000 * (time.perf_counter() - started))
            answers.mixed += not expect.fits(which, output, digest)
        time.sleep(PAUSE_S)


def _ask_in_process(serving: Serving) -> Ask:
    def ask(inputs: Array) -> tuple[Array, str]:
        prediction = serving.predict(inputs)
        return prediction.output, prediction.version.digest

    return ask


def _ask_over_grpc(path: Path) -> Ask:
    channel: grpc.Channel = client_channel(f"unix:{path}", TlsConfig())
    stub = inference_pb2_grpc.InferenceStub(channel)

    def ask(inputs: Array) -> tuple[Array, str]:
        request = inference_pb2.PredictRequest(input=make_tensor(inputs))
        response = stub.Predict(request, timeout=10.0)
        return read_tensor(response.output, "output"), response.model.digest

    return ask


def _percentile(answers: Answers, percent: float) -> float:
    if not answers.latencies_ms:
        raise CannotRun("a client got no answer at all; see what failed above")
    return float(np.percentile(answers.latencies_ms, percent))
