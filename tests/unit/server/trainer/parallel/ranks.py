"""Runs a function in several processes that meet in one gloo group; gathers their answers."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from fedge.children import die_with_parent

TIMEOUT = timedelta(seconds=120)


def run_ranks(
    work: Callable[..., Any], size: int, folder: Path, *arguments: Any, deadline_s: float = 280
) -> list[Any]:
    """Return each rank's ``work(*arguments)``; the first failure ends them all."""
    context = multiprocessing.get_context("spawn")
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        context.Process(target=_run, args=(work, rank, size, folder, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        _wait(processes, time.monotonic() + deadline_s)
    finally:
        for process in processes:
            process.kill()
            process.join()
    answers = [_answer(folder, rank) for rank in range(size)]
    failures = [answer["error"] for answer in answers if "error" in answer]
    if failures:
        raise AssertionError("\n".join(failures))
    return [answer["result"] for answer in answers]


def _wait(processes: list[Any], deadline: float) -> None:
    """Return when all have ended well, any has not, or the time is up."""
    waiting = list(processes)
    while waiting and time.monotonic() < deadline:
        multiprocessing.connection.wait([each.sentinel for each in waiting], timeout=1)
        waiting = [each for each in waiting if each.exitcode is None]
        if any(each.exitcode for each in processes):
            return


def _answer(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / f"answer-{rank}.json"
    if not path.exists():
        return {"error": f"rank {rank} was ended before it had an answer"}
    answer: dict[str, Any] = json.loads(path.read_text())
    return answer


def _run(
    work: Callable[..., Any], rank: int, size: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    die_with_parent()
    torch.set_num_threads(1)
    store = FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        answer = {"result": work(*arguments)}
    except BaseException:
        answer = {"error": f"rank {rank}:\n{traceback.format_exc()}"}
    (folder / f"answer-{rank}.json").write_text(json.dumps(answer))
    if "error" in answer:
        raise SystemExit(1)
    dist.barrier()
    dist.destroy_process_group()
