"""The cloud trainer: against a bare loop, what its weights cost on their way, two processes."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.bare_loop import run_bare_loop
from benchmarks.harness import progress
from benchmarks.step_clock import StepClock
from benchmarks.tasks.random_text import RandomText
from benchmarks.trainer_server import served
from fedge.params import Vector
from fedge.training.local import LocalTrainer
from server.refine import GrpcRefiner
from server.settings import RefineConfig
from server.trainer.alone import refining_alone
from server.trainer.loop import Control
from server.trainer.spec import RefineSpec

TASK = "benchmarks.tasks.random_text:RandomText"
SMALL = RandomText(width=128, depth=4, heads=4, context=64)
LARGE = RandomText(width=512, depth=8, heads=8, context=64)  # 25 million parameters
SPEC = RefineSpec(optimizer="adamw", learning_rate=1e-4, batch_size=16, steps=41, deadline_s=600)
NUM_TURNS = 7
NUM_TRANSFERS = 5
REFINEMENT_S = 10.0  # what the transfer is a share of


def measure(*, quick: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    num_turns = 1 if quick else NUM_TURNS
    spec = replace(SPEC, steps=5) if quick else SPEC
    large = replace(LARGE, depth=1) if quick else LARGE
    with tempfile.TemporaryDirectory() as folder:
        loop = _against_bare_loop(spec, num_turns)
        scaling = _scaling(Path(folder), spec, num_turns)
        transfer = _transfer(Path(folder), large, 1 if quick else NUM_TRANSFERS)
    return {
        "setup": (
            f"charlm of {_size(SMALL):,} parameters, batch {spec.batch_size} of "
            f"{SMALL.context} random characters, {spec.steps - 1} counted AdamW steps, one thread "
            f"a process, ratios are medians of {num_turns} interleaved turns; transfer: a call of "
            f"one step less that step, {_size(large):,} parameters, as a share of "
            f"{REFINEMENT_S:g} s"
        ),
        **loop,
        **transfer,
        **scaling,
    }


def _against_bare_loop(spec: RefineSpec, num_turns: int) -> dict[str, Any]:
    weights, refining = LocalTrainer(SMALL).initial_weights(0), refining_alone(SMALL)
    ours, bare = [], []
    for turn in range(num_turns):
        clock = StepClock()
        refining.run(weights, spec, Control(progress=clock.tick))
        ours.append(clock.seconds)
        bare.append(run_bare_loop(SMALL, weights, spec, torch.device("cpu")).seconds)
        progress(f"turn {turn}: ours {ours[-1]:.2f} s, bare loop {bare[-1]:.2f} s")
    ratios = [theirs / mine for mine, theirs in zip(ours, bare, strict=True)]
    return {"ratio_to_limit": statistics.median(ratios), "ours_s": ours, "bare_s": bare}


def _scaling(folder: Path, spec: RefineSpec, num_turns: int) -> dict[str, Any]:
    """Compare one rank with two that share each batch; each its trainer, asked in turns."""
    options = _options(SMALL)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with served(folder, TASK, options, 1) as one, served(folder, TASK, options, 2) as two:
        ask = {1: _caller(one, SMALL, spec), 2: _caller(two, SMALL, spec)}
        for turn in range(num_turns):
            for num_ranks, call in ask.items():
                whole = call(spec.steps, 2 * turn)
                seconds[num_ranks].append(whole - call(1, 2 * turn + 1))
            progress(f"turn {turn}: 1 rank {seconds[1][-1]:.2f} s, 2 ranks {seconds[2][-1]:.2f} s")
    ratios = [alone / shared for alone, shared in zip(seconds[1], seconds[2], strict=True)]
    return {"scaling_2_processes": statistics.median(ratios), "by_ranks_s": seconds}


def _transfer(folder: Path, task: RandomText, num_calls: int) -> dict[str, Any]:
    """Measure what a call costs beside its step."""
    spec = replace(SPEC, batch_size=1, steps=1)
    weights, refining = LocalTrainer(task).initial_weights(0), refining_alone(task)
    overheads = []
    with served(folder, TASK, _options(task)) as address:
        call = _caller(address, task, spec)
        for turn in range(num_calls + 1):
            step_s = refining.run(weights, spec).seconds
            overheads.append(call(1, turn) - step_s)
            progress(f"call {turn}: {overheads[-1]:.3f} s beside the step of {step_s:.3f} s")
    overheads = overheads[1:] or overheads  # the first call warms up the trainer
    return {
        "transfer_overhead": statistics.median(overheads) / REFINEMENT_S,
        "transfer_s": overheads,
        "transfer_parameters": _size(task),
    }


def _caller(address: str, task: RandomText, spec: RefineSpec) -> Callable[[int, int], float]:
    trainer = LocalTrainer(task)
    weights: Vector = trainer.initial_weights(0)

    def call(steps: int, round: int) -> float:
        refiner = GrpcRefiner(
            RefineConfig(trainer=address), "bench", trainer.layout, replace(spec, steps=steps)
        )
        started = time.perf_counter()
        refiner.refine(weights, round=round, deadline_s=spec.deadline_s)
        return time.perf_counter() - started

    return call


def _options(task: RandomText) -> dict[str, Any]:
    wanted = ("width", "depth", "heads", "context", "num_proxy")
    return {key: value for key, value in asdict(task).items() if key in wanted}


def _size(task: RandomText) -> int:
    return sum(each.numel() for each in task.build_model().parameters())
