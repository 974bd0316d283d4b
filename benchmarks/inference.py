"""What a prediction costs on the device: the engine, its gRPC service, and others' ways."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch

from benchmarks.edge_daemon import DIGITS, edge_daemon
from benchmarks.edge_models import NAMES, EdgeModel, make_edge_model
from benchmarks.harness import progress
from benchmarks.prediction_load import requests_per_s
from benchmarks.prediction_servers import ECHO_METHOD, server_process
from edge_client.batching import preparation
from edge_client.inference import Engine, Serving, Version
from edge_client.settings import InferenceConfig
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from fedge.tflite.runtime import load_interpreter
from protos.fedge.v1 import inference_pb2_grpc

NUM_TURNS = 9
NUM_CALLS = 2000
NUM_FAR_CALLS = 20
DELAYS_MS = (20, 80)
CLIENTS = (1, 8, 64)
LOAD_S = 4.0
BATCHES = (1, 8)
NUM_ASKERS = 16


def measure(*, quick: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    num_turns, num_calls = (2, 100) if quick else (NUM_TURNS, NUM_CALLS)
    models = [make_edge_model(name) for name in NAMES]
    gc.collect()
    gc.freeze()  # so that the client's own collector is not measured
    engine = {each.name: _engine(each, num_turns, num_calls) for each in models}
    with tempfile.TemporaryDirectory(prefix="fedge-") as folder, torch.inference_mode():
        service = _service(Path(folder), num_turns, num_calls, 0.5 if quick else LOAD_S)
    return {
        "setup": (
            f"digits MLP 64-64-10 and a CNN of {_size(models[1]):,} parameters on 28x28, random "
            f"weights of seed 0, one thread, one example a call; medians over {num_turns} "
            f"interleaved turns of {num_calls} calls; the service is a fedge-edge process on a "
            "Unix socket asked by one client, its echo an empty gRPC handler, the cloud the same "
            "service over TCP behind a delay; load from two client processes"
        ),
        "engine_ratio": max(each["ratio"] for each in engine.values()),
        "engine_extra_us": max(each["extra_us"] for each in engine.values()),
        "engine_within_limit": all(
            each["ratio"] <= 1.1 or each["extra_us"] <= 5 for each in engine.values()
        ),
        "torch_ratio": min(each["torch_ratio"] for each in engine.values()),
        "engine": engine,
        **service,
        "batching": {
            each.name: _batching(each, num_turns, 0.1 if quick else 1.0) for each in models
        },
    }


def _engine(model: EdgeModel, num_turns: int, num_calls: int) -> dict[str, float]:
    """Compare set, invoke, get on a bare interpreter, our engine and torch eager."""
    interpreter = load_interpreter(model.content, 1)
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]
    example, batch = model.inputs[0], model.inputs[:1]
    tensor = torch.from_numpy(batch)

    def bare() -> Any:
        interpreter.set_tensor(input_index, batch)
        interpreter.invoke()
        return interpreter.get_tensor(output_index)

    serving = Serving(Engine(model.content, Version(0, "")))
    sides: dict[str, Callable[[], Any]] = {
        "bare": bare,
        "ours": lambda: serving.predict(example),
        "torch": lambda: model.module(tensor),
    }
    with torch.inference_mode():
        turns = [
            {name: _percentiles(call, num_calls) for name, call in sides.items()}
            for _ in range(num_turns)
        ]
    p50_us = {name: _median(turns, name, 0) * 1000 for name in sides}
    progress(f"{model.name}: {p50_us} us")
    return {
        "ratio": statistics.median(turn["ours"][0] / turn["bare"][0] for turn in turns),
        "extra_us": 1e3 * statistics.median(turn["ours"][0] - turn["bare"][0] for turn in turns),
        "torch_ratio": statistics.median(turn["torch"][0] / turn["ours"][0] for turn in turns),
        **{f"{name}_p50_us": value for name, value in p50_us.items()},
    }


def _service(folder: Path, num_turns: int, num_calls: int, load_s: float) -> dict[str, Any]:
    """Ask the device, an echo and the clouds in turns; then load the device."""
    with ExitStack() as stack:
        daemon = stack.enter_context(edge_daemon(folder))
        echo = f"unix:{folder / 'echo.sock'}"
        stack.enter_context(server_process("echo", echo))
        sides = {"ours": _predictor(stack, daemon.address), "echo": _echo(stack, echo)}
        for delay in DELAYS_MS:
            port = stack.enter_context(server_process("cloud", "127.0.0.1:0", str(delay)))
            sides[f"cloud_{delay}ms"] = _predictor(stack, f"127.0.0.1:{port}")
        counts = {name: num_calls if name in ("ours", "echo") else NUM_FAR_CALLS for name in sides}
        for call in sides.values():
            _percentiles(call, NUM_FAR_CALLS)
        turns = [
            {name: _percentiles(call, counts[name]) for name, call in sides.items()}
            for _ in range(num_turns)
        ]
        p50 = {name: _median(turns, name, 0) for name in sides}
        progress(f"service p50: {p50} ms")
        loads = [
            {clients: requests_per_s(daemon.address, clients, load_s) for clients in CLIENTS}
            for _ in range(min(3, num_turns))
        ]
        progress(f"requests a second: {loads}")
    far = {
        delay: statistics.median(turn[f"cloud_{delay}ms"][0] / turn["ours"][0] for turn in turns)
        for delay in DELAYS_MS
    }
    return {
        "grpc_p50_ms": p50["ours"],
        "grpc_p99_ms": _median(turns, "ours", 1),
        "grpc_p99_turns_ms": [turn["ours"][1] for turn in turns],
        "echo_p50_ms": p50["echo"],
        "echo_p99_ms": _median(turns, "echo", 1),
        "requests_per_s": {
            str(clients): statistics.median(load[clients] for load in loads) for clients in CLIENTS
        },
        "cloud_ratio": far[DELAYS_MS[0]],
        "cloud_ratios": {f"{delay}ms": ratio for delay, ratio in far.items()},
    }


def _batching(model: EdgeModel, num_turns: int, seconds: float) -> dict[str, float]:
    """Return predictions a second of many threads, in process, by `max_batch`."""
    engine = Engine(model.content, Version(0, ""))
    servings = {
        size: Serving(engine, prepare=preparation(InferenceConfig(max_batch=size)))
        for size in BATCHES
    }

    def ask(serving: Serving, end: float) -> int:
        answered = 0
        while time.monotonic() < end:
            serving.predict(model.inputs[answered % len(model.inputs)])
            answered += 1
        return answered

    found: dict[int, list[float]] = {size: [] for size in BATCHES}
    with ThreadPoolExecutor(NUM_ASKERS) as pool:
        for _ in range(min(3, num_turns)):
            for size, serving in servings.items():
                end = time.monotonic() + seconds
                answered = pool.map(lambda _, s=serving, e=end: ask(s, e), range(NUM_ASKERS))
                found[size].append(sum(answered) / seconds)
    rates = {f"max_batch_{size}": statistics.median(rate) for size, rate in found.items()}
    progress(f"{model.name}, {NUM_ASKERS} threads: {rates} predictions a second")
    return rates


def _predictor(stack: ExitStack, address: str) -> Callable[[], Any]:
    channel = stack.enter_context(client_channel(address, TlsConfig()))
    stub = inference_pb2_grpc.InferenceStub(channel)
    return lambda: stub.Predict(DIGITS, timeout=10)


def _echo(stack: ExitStack, address: str) -> Callable[[], Any]:
    channel: grpc.Channel = stack.enter_context(client_channel(address, TlsConfig()))
    call = channel.unary_unary(ECHO_METHOD, None, None)
    request = DIGITS.SerializeToString()
    return lambda: call(request, timeout=10)


def _percentiles(call: Callable[[], Any], num_calls: int) -> tuple[float, float]:
    """Return p50 and p99 of a call, in milliseconds."""
    clock, seconds = time.perf_counter_ns, np.empty(num_calls)
    for index in range(num_calls):
        began = clock()
        call()
        seconds[index] = clock() - began
    p50, p99 = np.percentile(seconds / 1e6, [50, 99])
    return float(p50), float(p99)


def _median(turns: Sequence[Mapping[str, tuple[float, float]]], name: str, index: int) -> float:
    return statistics.median(turn[name][index] for turn in turns)


def _size(model: EdgeModel) -> int:
    return sum(parameter.numel() for parameter in model.module.parameters())
