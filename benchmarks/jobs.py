"""Many independent runs of one benchmark, several at a time, each in a process of its own.

What is finished is appended to a file of JSON lines, if one is named: a benchmark that was cut
off goes on from there.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.harness import progress
from fedge.children import die_with_parent
from fedge.durable import append_line

_SHARED_MEMORY = Path("/dev/shm")


class Job(Protocol):
    """One run; it travels to another process."""

    @property
    def key(self) -> str:
        """Name that tells it from every other run of the benchmark."""
        ...


J = TypeVar("J", bound=Job)


def run_jobs(
    work: Callable[[J], dict[str, Any]],
    jobs: Sequence[J],
    *,
    results: Path | None = None,
    num_processes: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Return each job's result by its key.

    Args:
        work: a function of a module, not of a closure; it gets one job.
        jobs: what is to be done, keys distinct.
        results: file of finished jobs, read first and appended to; None keeps none. It knows keys
            alone: after a change of the code, name another.
        num_processes: jobs at a time; None takes one a core.
    """
    known = {job.key for job in jobs}
    found = {key: value for key, value in _read(results).items() if key in known}
    waiting = [job for job in jobs if job.key not in found]
    progress(f"{len(found)} of {len(jobs)} runs are there, {len(waiting)} to do")
    began = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes or os.cpu_count(), context, _prepare) as pool:
        futures = {pool.submit(_timed, work, job): job for job in waiting}
        for future in as_completed(futures):
            key, result = futures[future].key, future.result()
            found[key] = result
            _append(results, key, result)
            done = len(found) - (len(jobs) - len(waiting))
            left_s = (time.monotonic() - began) / done * (len(waiting) - done)
            progress(f"{len(found)}/{len(jobs)} {key}: {result} (about {left_s:.0f} s left)")
    return {job.key: found[job.key] for job in jobs}


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder for the time of a run, in memory where there is one: its syncs cost nothing."""
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fedge-benchmark-", dir=parent) as folder:
        yield Path(folder)


def _prepare() -> None:
    """Keep a worker process to one thread and to what it returns; it ends with its parent."""
    import torch

    die_with_parent()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


def _timed(work: Callable[[J], dict[str, Any]], job: J) -> dict[str, Any]:
    began = time.monotonic()
    result = work(job)
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.exists():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        found[entry.pop("key")] = entry
    return found


def _append(path: Path | None, key: str, result: dict[str, Any]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, json.dumps({"key": key, **result}))
