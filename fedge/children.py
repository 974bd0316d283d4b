"""Child processes that never outlive what started them.

Each child leads its own session, so that Ctrl-C reaches only the parent, which then stops its
children in order; and the kernel ends a child whose parent was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedge.errors import ConfigError

_PR_SET_PDEATHSIG = 1
# Opened here: between fork and exec of a process with threads, dlopen could wait for ever.
_LIBC = ctypes.CDLL(None)
QUIET_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def start_child(
    argv: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one; call it from a thread that lives as long.

    Args:
        log: file that its output is appended to.
        environment: variables added to this process's own.

    Raises:
        ConfigError: the program or the log file cannot be opened.
    """
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **QUIET_ENVIRONMENT, **(environment or {})},
                pass_fds=tuple(pass_fds),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
    except OSError as error:
        raise ConfigError(f"cannot start {argv[0]}: {error.strerror} ({error.filename})") from error


def stop_children(processes: Sequence[subprocess.Popen[bytes]], *, grace_s: float = 5.0) -> None:
    """End children and all that they started: SIGTERM to each, later SIGKILL to its session.

    Args:
        grace_s: how long all of them together have to end by themselves.
    """
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    give_up = time.monotonic() + grace_s
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.0, give_up - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stop_child(process: subprocess.Popen[bytes], *, grace_s: float = 5.0) -> int:
    """End one child and all that it started; returns its exit status."""
    stop_children([process], grace_s=grace_s)
    return process.wait()


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies; Linux only, nothing elsewhere."""
    with contextlib.suppress(AttributeError):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
