"""What each codec costs in bits and seconds, and what it loses, at 1 M and 25 M parameters."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from aggregation.codecs import make_codec
from benchmarks.harness import progress
from fedge.params import Layout, Vector

SIZES = {"1M": 1_000_000, "25M": 25_000_000}
QUICK_SIZES = {"100k": 100_000}
INT8, TOPK5, TOPK1 = "int8", "topk:0.05+int8+signs:0.5", "topk:0.01+int8+signs:0.5"
TOPK5_PLAIN, TOPK1_PLAIN = "topk:0.05+f16", "topk:0.01+f16"
SPECS = (
    "raw",
    "f16",
    "bf16",
    INT8,
    "int4",
    "rotate+int8",
    "rotate+int4",
    "rotate+eden:1",
    "rotate+eden:2",
    "rotate+eden:4",
    "signs:0.5",
    TOPK5_PLAIN,
    "topk:0.05+int8",
    TOPK5,
    TOPK1_PLAIN,
    "topk:0.01+int8",
    TOPK1,
    "randomk:0.05+f16",
)
NUM_RUNS = 3


def measure(*, quick: bool) -> dict[str, Any]:
    sizes = QUICK_SIZES if quick else SIZES
    codecs = {name: _measure_all(size) for name, size in sizes.items()}

    def ratio(spec: str) -> float:
        """Return how many times smaller than float32, at the size where it is least."""
        return min(32 / by_spec[spec]["bits_per_parameter"] for by_spec in codecs.values())

    return {
        "setup": (
            f"deltas of {' and '.join(sizes)} parameters (Student t, 3 degrees of freedom, in "
            "tensors of 65,536 whose scales are log-normal with sigma 1, seed 0); medians of "
            f"{NUM_RUNS} runs; only matrix products use more than one thread; int8_ratio is of "
            f"{INT8}, topk5_ratio of {TOPK5} and topk1_ratio of {TOPK1} (the largest by int8 and "
            f"half a bit a parameter for the rest), the plain ones of {TOPK5_PLAIN} and "
            f"{TOPK1_PLAIN} with error feedback; distortion is the energy lost of the first delta"
        ),
        "int8_ratio": ratio(INT8),
        "topk5_ratio": ratio(TOPK5),
        "topk1_ratio": ratio(TOPK1),
        "topk5_plain_ratio": ratio(TOPK5_PLAIN),
        "topk1_plain_ratio": ratio(TOPK1_PLAIN),
        "codecs": codecs,
    }


def _measure_all(size: int) -> dict[str, dict[str, float]]:
    delta = heavy_tailed(size)
    layout = Layout(("weight",), ((size,),))
    return {spec: _measure(spec, delta, layout) for spec in SPECS}


def heavy_tailed(size: int) -> Vector:
    """Return a delta like a network's: heavy tails, and tensors of very different scales."""
    rng = np.random.default_rng(0)
    delta = rng.standard_t(3, size).astype(np.float32)
    for start in range(0, size, 65_536):
        delta[start : start + 65_536] *= np.float32(1e-3 * rng.lognormal())
    return delta


def _measure(spec: str, delta: Vector, layout: Layout) -> dict[str, float]:
    codec, rng = make_codec(spec), np.random.default_rng(1)
    encode_s, decode_s, distortions = [], [], []
    state = codec.init(layout)
    bits = 0.0
    for _ in range(NUM_RUNS):
        start = time.perf_counter()
        encoded, state = codec.encode(delta, state, rng)
        encode_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        codec.decode(encoded.payload, layout)
        decode_s.append(time.perf_counter() - start)
        bits = encoded.bits
        distortions.append(encoded.distortion)
    result = {
        "bits_per_parameter": bits,
        "encode_s": statistics.median(encode_s),
        "decode_s": statistics.median(decode_s),
        "distortion": distortions[0],
    }
    progress(
        f"{layout.size:>10} {spec:26} {bits:7.4f} bits, encode {result['encode_s']:.4f} s, "
        f"decode {result['decode_s']:.4f} s, distortion {result['distortion']:.2g}"
    )
    return result
