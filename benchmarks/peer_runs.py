"""Runs a peer's script in a virtual environment of its own, made once under ``build/peers``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import CannotRun, progress
from benchmarks.peers.work import Work

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "peers"
CONSTRAINTS = ROOT / "constraints.txt"
_TIMEOUT_S = 180.0
"""A setting that takes longer is nobody's best: with one actor Flower sometimes does."""
_LAST_LINES = 15


class PeerFailed(Exception):
    """A peer's script ended without a result; the text is its last lines."""


@dataclass(frozen=True)
class Peer:
    """An engine: its script, and what the script needs.

    Attributes:
        module: script, run with ``python -m`` from the project's root.
        requirements: for pip, under the project's constraints; empty runs in this environment.
        torchrun: start ``num_processes`` ranks of it.
    """

    module: str
    requirements: tuple[str, ...] = ()
    torchrun: bool = False

    def run(self, work: Work) -> list[float]:
        """Return the seconds of each counted round.

        Raises:
            CannotRun: its environment cannot be made.
            PeerFailed: it ended without a result.
        """
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(work.num_processes)]
        command = [
            str(python_of(self.requirements)),
            *(launcher if self.torchrun and work.num_processes > 1 else []),
            *("-m", self.module, work.to_json()),
        ]
        with tempfile.TemporaryDirectory(prefix="fedge-peer-") as home:
            text = _run(command, home, work.device)
        return read_rounds(text)[1:]


def read_rounds(text: str) -> list[float]:
    """Return each round's seconds from the last line of a script's output.

    Raises:
        PeerFailed: it is not there.
    """
    try:
        return [float(value) for value in json.loads(text.strip().splitlines()[-1])["round_s"]]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise PeerFailed(_tail(text)) from error


def python_of(requirements: Sequence[str]) -> Path:
    """Return the interpreter of an environment with these requirements; made if it is not there.

    Raises:
        CannotRun: pip cannot install them.
    """
    if not requirements:
        return Path(sys.executable)
    wanted = "\n".join([sys.version, *requirements, CONSTRAINTS.read_text()])
    folder = FOLDER / hashlib.sha256(wanted.encode()).hexdigest()[:12]
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.exists():
        progress(f"installing {', '.join(requirements)} into {folder}: about a minute, once")
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "--constraint", str(CONSTRAINTS), *requirements],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise CannotRun(f"pip cannot install {', '.join(requirements)}: {_tail(done.stderr)}")
        stamp.touch()
    return python


def _run(command: Sequence[str], home: str, device: str) -> str:
    """Return what a script prints; where it fails, its error output."""
    unwanted = ("OMP_NUM_THREADS", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in unwanted}
    environment |= {"FLWR_HOME": home, "PFL_PYTORCH_DEVICE": device}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, errors = process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise PeerFailed(f"no result after {_TIMEOUT_S:.0f} s") from error
        finally:
            # Ranks and actors outlive a script that is ended early, and would slow down the next.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return printed if process.returncode == 0 else printed + errors


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_LAST_LINES:])
