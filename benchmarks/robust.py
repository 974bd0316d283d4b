"""Median, trimmed mean and Krum over 100 updates of 1.2 M parameters, against Flower's."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum
from threadpoolctl import threadpool_limits

from aggregation.contracts import AggregatorOptions, ClientUpdate, RoundContext
from aggregation.methods import BUFFERED
from aggregation.spill import SpilledUpdates
from benchmarks.harness import progress
from fedge.params import Layout, Vector
from fedge.records import to_array_record

# PyTorch's MNIST example: 1,199,882 parameters.
SHAPES = ((32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (128, 9216), (128,), (10, 128), (10,))
NUM_UPDATES = 100
NUM_RUNS = 5
MALICIOUS_FRACTION = 0.2
NAMES = ("median", "trimmed", "krum")
SOURCES = ("", "_from_records")
Arrays = list[np.ndarray[Any, np.dtype[np.float32]]]


class _Record:
    """What Flower's Krum asks of a reply, over arrays that are there already."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.array_records = {"arrays": self}

    def __getitem__(self, name: str) -> _Record:
        return self.array_records[name]

    def to_numpy_ndarrays(self) -> Arrays:
        return self.arrays


def measure(*, quick: bool) -> dict[str, Any]:
    torch.set_num_threads(1)  # as fedge-server does: columns are shared out among cores instead
    num_updates, runs = (10, 1) if quick else (NUM_UPDATES, NUM_RUNS)
    names = tuple(f"tensor{index}" for index in range(len(SHAPES)))
    layout = Layout(names, SHAPES)
    rng = np.random.default_rng(0)
    deltas = [rng.standard_normal(layout.size, np.float32) * 1e-3 for _ in range(num_updates)]
    with tempfile.TemporaryDirectory(prefix="fedge-benchmark-") as folder:
        spilled = SpilledUpdates(layout, Path(folder))
        with contextlib.closing(spilled):
            for client, delta in enumerate(deltas):
                spilled.append(ClientUpdate(client, delta, 1.0, float(np.linalg.norm(delta))))
            methods = _ours(spilled, layout)
            arrays = [_Record(list(layout.views(delta).values())) for delta in deltas]
            methods |= _peers(arrays, "")
            records = [RecordDict({"arrays": to_array_record(layout, delta)}) for delta in deltas]
            methods |= _peers(records, "_from_records")
            seconds, difference = _interleaved(methods, runs)
    return {
        "setup": (
            f"{num_updates} updates of {layout.size} float32 parameters in {len(SHAPES)} tensors, "
            f"seed 0, {MALICIOUS_FRACTION:.0%} assumed malicious; ours: the registered classes on "
            "the memory-mapped spill file (page cache warm), all cores; peer: flwr's numpy "
            "expressions and functions on arrays that are there already (from_records: with their "
            "conversion from records, which flwr does after the last reply and fedge as each "
            "arrives), Krum by the faster of all BLAS threads and one; medians of "
            f"{runs} interleaved runs"
        ),
        **{
            f"ratio_to_peer_{name}{source}": _peer(seconds, name, source) / seconds[f"ours_{name}"]
            for source in SOURCES
            for name in NAMES
        },
        **{f"{name}_s": value for name, value in seconds.items()},
        "largest_difference": difference,
    }


def _ours(spilled: SpilledUpdates, layout: Layout) -> dict[str, Callable[[], Vector]]:
    options = AggregatorOptions(malicious_fraction=MALICIOUS_FRACTION)

    def finish(name: str) -> Vector:
        return BUFFERED[name](options).finish(spilled, layout, RoundContext(1))[0]

    return {
        "ours_median": lambda: finish("median"),
        "ours_trimmed": lambda: finish("trimmed-mean"),
        "ours_krum": lambda: finish("krum"),
    }


def _peers(records: Any, source: str) -> dict[str, Callable[[], Vector]]:
    """Return Flower's three, and Krum again with one BLAS thread."""

    def by_tensor(combine: Callable[[Any], Any]) -> Vector:
        # One tensor after another, as FedMedian and FedTrimmedAvg do.
        tensors = zip(*(record["arrays"].to_numpy_ndarrays() for record in records), strict=True)
        return _flat([combine(np.stack(tensor)) for tensor in tensors])

    def krum() -> Vector:
        num_malicious = int(MALICIOUS_FRACTION * len(records))
        chosen: Any = select_multikrum(records, num_malicious, 1)[0]
        return _flat(chosen["arrays"].to_numpy_ndarrays())

    def krum_one_thread() -> Vector:
        with threadpool_limits(1):
            return krum()

    return {
        f"peer_median{source}": lambda: by_tensor(lambda rows: np.median(rows, axis=0)),
        f"peer_trimmed{source}": lambda: by_tensor(
            lambda rows: trim_mean(rows, MALICIOUS_FRACTION)
        ),
        f"peer_krum{source}": krum,
        f"peer_krum_one_thread{source}": krum_one_thread,
    }


def _flat(arrays: Arrays) -> Vector:
    return np.concatenate([array.ravel() for array in arrays])


def _peer(seconds: dict[str, float], name: str, source: str) -> float:
    one_thread = seconds.get(f"peer_{name}_one_thread{source}", np.inf)
    return min(seconds[f"peer_{name}{source}"], one_thread)


def _interleaved(
    methods: dict[str, Callable[[], Vector]], runs: int
) -> tuple[dict[str, float], float]:
    """Return the median seconds of each and how far ours ever is from the peer's result."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    difference = 0.0
    for run in range(runs):
        results = {}
        for name, method in methods.items():
            begin = time.perf_counter()
            results[name] = method()
            seconds[name].append(time.perf_counter() - begin)
        for name in NAMES:
            apart = np.abs(results[f"ours_{name}"] - results[f"peer_{name}"]).max()
            difference = max(difference, float(apart))
        progress(
            f"run {run}: " + str({name: round(found[-1], 3) for name, found in seconds.items()})
        )
    return {name: statistics.median(found) for name, found in seconds.items()}, difference
