"""What the training process may use of the machine: cores, memory, and its place in the queue."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from edge_client.settings import TrainingProcessConfig, parse_cores
from fedge.errors import ConfigError

MIB = 1 << 20
_OUT_OF_MEMORY_SCORE = Path("/proc/self/oom_score_adj")
_FIRST_TO_END = "1000"
_STATUS = Path("/proc/self/status")
_MEMORY_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "cannot allocate memory",
)


def step_back(config: TrainingProcessConfig) -> None:
    """Lower this process's priority and keep to its cores; threads made later inherit both.

    Raises:
        ConfigError: the machine has none of the cores.
    """
    os.nice(config.nice)
    with contextlib.suppress(OSError):  # a machine short of memory ends this process first
        _OUT_OF_MEMORY_SCORE.write_text(_FIRST_TO_END)
    cores = training_cores(config, os.sched_getaffinity(0))
    if cores != os.sched_getaffinity(0):
        os.sched_setaffinity(0, cores)


def training_cores(config: TrainingProcessConfig, available: set[int]) -> set[int]:
    """Return the cores that training runs on.

    Raises:
        ConfigError: none of those named is available.
    """
    named = parse_cores(config.cores)
    if named is None:
        if config.cores == "all":
            return set(available)
        return set(sorted(available)[-config.num_threads :])
    if not named & available:
        raise ConfigError(
            f"none of {config.cores} is among this device's cores {sorted(available)}",
            key="training.cores",
        )
    return set(named & available)


def limit_memory(config: TrainingProcessConfig) -> None:
    """Let allocations fail beyond the configured size, those made so far included.

    Raises:
        ConfigError: this process is larger than that before it trains.
    """
    limit = config.max_memory_mib * MIB or half_of_memory()
    used = private_bytes()
    if used > limit:
        raise ConfigError(
            f"{limit // MIB} MiB are too few: the training process takes {used // MIB} MiB before "
            "it trains",
            key="training.max_memory_mib",
        )
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or limit < most:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def lift_memory_limit() -> None:
    """Allow allocations again, so that what failed can be said."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is an allocation that failed, by whatever name a library gives it."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(each in text for each in _MEMORY_TEXTS)


def half_of_memory() -> int:
    """Return half of the machine's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def private_bytes() -> int:
    """Return how much writable memory this process has that is its own; what RLIMIT_DATA counts."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
