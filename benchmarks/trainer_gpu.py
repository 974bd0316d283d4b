"""The cloud trainer on a GPU: tokens a second, and how much of the card's matmul rate they use."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.bare_loop import run_bare_loop
from benchmarks.harness import CannotRun, progress
from benchmarks.step_clock import StepClock
from benchmarks.tasks.random_text import RandomText
from fedge.training.local import LocalTrainer
from server.trainer.loop import Control
from server.trainer.parallel.build import build_parallel
from server.trainer.parallel.degrees import MeshConfig
from server.trainer.refining import ProxyData, Refining
from server.trainer.spec import RefineSpec

MODEL = RandomText(width=768, depth=14, heads=12, context=512, num_proxy=1024)
SMALL = RandomText(width=64, depth=2, heads=2, context=32, num_proxy=64)
SPEC = RefineSpec(optimizer="adamw", learning_rate=1e-4, batch_size=64, steps=31, deadline_s=600)
NUM_TURNS = 5
MATMUL_SIZE = 8192
NUM_MATMULS = 50


def measure(*, quick: bool) -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise CannotRun("torch sees no CUDA device; this benchmark measures the trainer on a card")
    task, num_turns = (SMALL, 1) if quick else (MODEL, NUM_TURNS)
    spec = replace(SPEC, steps=5) if quick else SPEC
    device = torch.device("cuda", 0)
    matmul_flops = _matmul_rate(device)
    progress(f"matmul in bfloat16: {matmul_flops / 1e12:.0f} TFLOP/s")
    seconds = _take_turns(task, spec, device, num_turns)
    num_tokens = (spec.steps - 1) * spec.batch_size * task.context
    tokens_per_s = {name: num_tokens / statistics.median(each) for name, each in seconds.items()}
    best = max(("compiled", "plain"), key=lambda name: tokens_per_s[name])
    flops = _flops_a_token(task)
    return {
        "setup": (
            f"charlm of {_size(task):,} parameters, bfloat16 with float32 weights, batch "
            f"{spec.batch_size} of {task.context} random characters, {spec.steps - 1} counted "
            f"AdamW steps, medians of {num_turns} interleaved turns; ours at the better of "
            f"compiled and plain blocks ({best}), the bare loop too; {flops / 1e6:.0f} MFLOP a "
            f"token forward and backward, against {MATMUL_SIZE}³ products in bfloat16"
        ),
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "tokens_per_s": tokens_per_s[best],
        "mfu_of_measured_matmul": tokens_per_s[best] * flops / matmul_flops,
        "bare_ratio": tokens_per_s[best]
        / max(tokens_per_s["bare compiled"], tokens_per_s["bare plain"]),
        "matmul_tflops": matmul_flops / 1e12,
        "tokens_per_s_of_each": tokens_per_s,
    }


def _take_turns(
    task: RandomText, spec: RefineSpec, device: torch.device, num_turns: int
) -> dict[str, list[float]]:
    """Return the seconds of each way to train, turn by turn; a turn before warms them up."""
    weights = LocalTrainer(task).initial_weights(0)

    def ours(compiled: bool) -> Callable[[], float]:
        mesh = MeshConfig(precision="bfloat16", compile=compiled)
        model = build_parallel(task, mesh, 1, device)
        refining = Refining(task, model, ProxyData(task.cloud_data().proxy))

        def run() -> float:
            clock = StepClock()
            refining.run(weights, spec, Control(progress=clock.tick))
            return clock.seconds

        return run

    def bare(compiled: bool) -> Callable[[], float]:
        def run() -> float:
            found = run_bare_loop(task, weights, spec, device, bfloat16=True, compiled=compiled)
            return found.seconds

        return run

    ways = {
        "plain": ours(False),
        "compiled": ours(True),
        "bare plain": bare(False),
        "bare compiled": bare(True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(num_turns + 1):
        for name, run in ways.items():
            took = run()
            progress(f"turn {turn}: {name} {took:.2f} s")
            if turn > 0:
                seconds[name].append(took)
    return seconds


def _matmul_rate(device: torch.device) -> float:
    """Return FLOP/s of large products in bfloat16, the median of several."""
    left, right = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(NUM_MATMULS):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        left @ right
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * MATMUL_SIZE**3 / statistics.median(seconds[NUM_MATMULS // 5 :])


def _flops_a_token(task: RandomText) -> float:
    """Return FLOP of forward and backward.

    Source: Chowdhery et al., PaLM, 2022, appendix B; embeddings are looked up, not multiplied.
    """
    model = task.build_model()
    multiplied = sum(
        each.numel() for name, each in model.named_parameters() if not name.startswith("embed")
    )
    return 6 * multiplied + 12 * task.depth * task.width * task.context


def _size(task: RandomText) -> int:
    return sum(each.numel() for each in task.build_model().parameters())
