"""A round's mean: 200 updates of 11 M parameters as they come off the wire, against Flower's."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from aggregation.bounded import BoundedMean
from aggregation.codecs import decode_payload
from aggregation.contracts import AggregatorOptions, RoundContext
from aggregation.gate import GateLimits, UpdateGate
from aggregation.mean import WeightedMean
from aggregation.norms import tensor_of
from benchmarks.harness import progress
from fedge.messages import EncodedUpdate, FullWeights, decode_reply, encode_update
from fedge.params import Layout, Vector
from fedge.records import to_array_record

# The shape of a ResNet-18: many tensors, four of which hold most of the parameters.
SHAPES = ((64, 3, 7, 7), *((256, 256, 3, 3),) * 6, *((512, 512, 3, 3),) * 3, (512, 256, 1, 1))
NUM_UPDATES = 200
NUM_DISTINCT = 8
NUM_RUNS = 3
PARENT = "a" * 64


def measure(*, quick: bool) -> dict[str, Any]:
    num_updates, runs = (16, 1) if quick else (NUM_UPDATES, NUM_RUNS)
    shapes = tuple(tuple(max(1, side // 8) for side in shape) for shape in SHAPES)
    layout = _layout(shapes if quick else SHAPES)
    rng = np.random.default_rng(0)
    deltas = [rng.standard_normal(layout.size, np.float32) * 1e-3 for _ in range(NUM_DISTINCT)]
    parent = rng.standard_normal(layout.size, np.float32)
    encoded = [_fedge_reply(layout, delta) for delta in deltas]
    stock = [_stock_reply(layout, parent + delta) for delta in deltas]
    order = [index % NUM_DISTINCT for index in range(num_updates)]
    methods: dict[str, Callable[[], object]] = {
        "ours": lambda: _ours(layout, [encoded[i] for i in order], WeightedMean),
        "default": lambda: _ours(layout, [encoded[i] for i in order], BoundedMean),
        "stock": lambda: _ours(layout, [stock[i] for i in order], WeightedMean, parent),
        "peer": lambda: aggregate_arrayrecords([stock[i] for i in order], "num-examples"),
        "limit": lambda: _limit(layout, [deltas[i] for i in order]),
    }
    seconds = _interleaved(methods, runs)
    peer, limit = seconds["peer"], seconds["limit"]
    return {
        "setup": _setup(layout, num_updates, runs),
        **{f"{name}_s": value for name, value in seconds.items()},
        "ratio_to_peer": peer / seconds["ours"],
        "ratio_to_peer_default": peer / seconds["default"],
        "ratio_to_peer_stock": peer / seconds["stock"],
        "ratio_to_limit": limit / seconds["ours"],
        "ratio_to_limit_default": limit / seconds["default"],
        "peak_extra_models": _peak_extra_models(layout.shapes, num_updates, WeightedMean),
        "peak_extra_models_default": _peak_extra_models(layout.shapes, num_updates, BoundedMean),
    }


def _setup(layout: Layout, num_updates: int, runs: int) -> str:
    return (
        f"{num_updates} updates ({NUM_DISTINCT} distinct ones in turn) of {layout.size} float32 "
        f"parameters in {len(layout.names)} tensors, one by one as Flower records. Ours and the "
        "default: fedge replies, decoded, gated and added to a weighted mean (ours) or to the "
        "default bounded mean; stock: the same weighted mean from the peer's records of whole "
        "weights; peer: flwr's aggregate_arrayrecords on those; limit: one norm pass and one "
        "fused multiply-add pass over plain arrays, no records, no checks. "
        f"{torch.get_num_threads()} threads, medians of {runs} interleaved runs; peak memory "
        "beyond the received updates, in models, in a process of its own (default: no update is "
        "set aside, and the course it remembers is there before)"
    )


def _layout(shapes: tuple[tuple[int, ...], ...]) -> Layout:
    return Layout(tuple(f"layer{index}.weight" for index in range(len(shapes))), shapes)


def _fedge_reply(layout: Layout, delta: Vector) -> RecordDict:
    return encode_update(
        EncodedUpdate(
            round=1,
            parent=PARENT,
            layout_digest=layout.digest,
            codec="raw",
            payload=delta.tobytes(),
            num_examples=60.0,
        )
    )


def _stock_reply(layout: Layout, weights: Vector) -> RecordDict:
    arrays: ArrayRecord = to_array_record(layout, weights)
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 60})})


def _ours(
    layout: Layout,
    replies: list[RecordDict],
    method: type[BoundedMean] | type[WeightedMean],
    parent: Vector | None = None,
) -> Vector:
    """Do what a round does with each reply: read, decode, gate, add, forget."""
    gate = UpdateGate(layout, GateLimits())
    gate.open_round(1, PARENT)
    memory = {"median_distance": 3.0, "median_weight": 60.0, "course": _course(layout)}
    aggregator: Any = method(AggregatorOptions())
    state = aggregator.init(layout, RoundContext(1, memory=memory))
    for client, content in enumerate(replies):
        reply = decode_reply(content, layout)
        if isinstance(reply, FullWeights):
            assert parent is not None
            delta = np.subtract(reply.weights, parent, out=reply.weights)
        else:
            assert isinstance(reply, EncodedUpdate)
            delta = decode_payload(reply.codec, reply.payload, layout, ("raw",))
        update = gate.admit(
            client,
            delta,
            reply.num_examples,
            round=1,
            parent=PARENT,
            layout_digest=None,
        )
        state = aggregator.add(state, update)
    mean: Vector = aggregator.finish(state)[0]
    return mean


@cache
def _course(layout: Layout) -> Vector:
    return np.ones(layout.size, np.float32)


def _limit(layout: Layout, deltas: list[Vector]) -> Vector:
    total = torch.zeros(layout.size)
    for delta in deltas:
        torch.linalg.vector_norm(tensor_of(delta))
        total.add_(tensor_of(delta), alpha=60.0)
    total /= 60.0 * len(deltas)
    mean: Vector = total.numpy()
    return mean


def _interleaved(methods: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in methods}
    for run in range(runs):
        for name, method in methods.items():
            started = time.perf_counter()
            method()
            samples[name].append(time.perf_counter() - started)
        progress(f"run {run}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in samples.items()))
    return {name: statistics.median(values) for name, values in samples.items()}


def _peak_extra_models(
    shapes: tuple[tuple[int, ...], ...],
    num_updates: int,
    method: type[BoundedMean] | type[WeightedMean],
) -> float:
    """Return how far memory rises above the received updates at most, in models.

    In a process of its own, because a process's peak cannot be told from an earlier one's.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure_peak, shapes, num_updates, method).result()


def _measure_peak(
    shapes: tuple[tuple[int, ...], ...],
    num_updates: int,
    method: type[BoundedMean] | type[WeightedMean],
) -> float:
    layout = _layout(shapes)
    delta = np.random.default_rng(0).standard_normal(layout.size, np.float32)
    replies = [_fedge_reply(layout, delta) for _ in range(2)]
    _ours(layout, replies, method)  # what is imported or set up once is not the round's
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is used now
    before = _peak_bytes()
    _ours(layout, [replies[i % 2] for i in range(num_updates)], method)
    return (_peak_bytes() - before) / layout.size_bytes


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
