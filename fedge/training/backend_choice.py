"""Which backend trains a cohort: those that can are timed on real members, the fastest is kept.

Processes that share a cache folder agree: one measures while the others wait for what it found.
So one run trains with one backend, whatever the number of its workers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import torch

from fedge import __version__
from fedge.durable import write_atomically
from fedge.params import Vector
from fedge.settings import Hyperparameters
from fedge.training.cohort_contracts import Backend, Batches, CohortSettings
from fedge.training.excerpts import excerpt, one_epoch
from fedge.training.local import LocalResult

_BUDGET_S = 0.25
_MOST_CLIENTS = 64
_GROWTH = 4
_REPEATS = 3
_MOST_STEPS = 20
_TICK_S = 1e-6


@dataclass(frozen=True)
class Choice:
    """A backend and why it was taken.

    Attributes:
        rates: clients/s of each backend that was measured.
        reasons: why others were not, by name.
    """

    name: str
    rates: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return one line for the log."""
        others = sorted(self.rates.keys() - {self.name}, key=lambda name: -self.rates[name])
        parts = [f"{name} {self.rates[name]:,.0f}" for name in others]
        parts += [f"not {name}: {reason}" for name, reason in sorted(self.reasons.items())]
        if self.name in self.rates:
            first = f"{self.rates[self.name]:,.0f} clients/s"
            parts[:0] = [first]
        return f"{self.name} ({'; '.join(parts)})" if parts else self.name


def choice_key(
    layout_digest: str, hyper: Hyperparameters, private: bool, settings: CohortSettings
) -> str:
    """Return the digest of everything that a measurement depends on."""
    facts = (
        layout_digest,
        (hyper.batch_size, hyper.local_epochs, hyper.optimizer, hyper.client_term),
        (hyper.momentum > 0, hyper.weight_decay > 0, private),
        (settings.precision, settings.device, settings.memory_mib),
        (__version__, torch.__version__, torch.get_num_threads(), _cpu_name()),
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def measure(
    backends: Mapping[str, Backend],
    parent: Vector,
    members: Sequence[Batches],
    hyper: Hyperparameters,
    device: str = "cpu",
) -> Choice | None:
    """Return the fastest of the backends; None where none of them trained a member.

    Args:
        members: real ones, of whom the first steps are taken; in turns where a backend is fast
            enough for more.
        device: what they train on.
    """
    shares = [min(1.0, _MOST_STEPS / max(1, len(member.steps))) for member in members]
    if min(shares, default=1.0) < 1.0:
        members, hyper = [excerpt(member, _MOST_STEPS) for member in members], one_epoch(hyper)
    rates, reasons = {}, {}
    for name, backend in backends.items():
        try:
            rate = _rate(backend, parent, members, hyper, _clock(device))
        except Exception as error:  # what a model does inside a backend is not foreseeable
            reasons[name] = describe(error)
            continue
        if rate > 0:
            rates[name] = rate * fmean(shares)
        else:
            reasons[name] = "it trained none of the members"
    return Choice(max(rates, key=lambda name: rates[name]), rates, reasons) if rates else None


def describe(error: Exception) -> str:
    """Return an error's kind and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def _clock(device: str) -> Callable[[], float]:
    """Return what tells the time that training takes.

    On one thread that is the processor's: the clock on the wall also counts what others do on a
    busy machine meanwhile, and has chosen backends half as fast.
    """
    one_thread = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if one_thread else time.perf_counter


def _rate(
    backend: Backend,
    parent: Vector,
    members: Sequence[Batches],
    hyper: Hyperparameters,
    clock: Callable[[], float],
) -> float:
    """Return clients/s once warm, the best of a few calls with as many as the budget allows."""
    backend.train(parent, members[:1], hyper)
    count, best, spent, num_repeats = 1, 0.0, 0.0, 0
    while num_repeats < _REPEATS:
        chosen = [members[at % len(members)] for at in range(count)]
        began = clock()
        outcomes = backend.train(parent, chosen, hyper)
        elapsed = max(clock() - began, _TICK_S)
        spent += elapsed
        best = max(best, sum(isinstance(each, LocalResult) for each in outcomes) / elapsed)
        if count < _MOST_CLIENTS and spent + _GROWTH * elapsed <= _BUDGET_S:
            count *= _GROWTH
        elif spent + elapsed <= _BUDGET_S:
            num_repeats += 1
        else:
            break
    return best


def read_choice(cache: Path | None, key: str) -> Choice | None:
    """Return what was measured before, or None; an unreadable file counts as none."""
    if cache is None:
        return None
    try:
        return Choice(**json.loads(_path(cache, key).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def write_choice(cache: Path | None, key: str, choice: Choice) -> None:
    """Keep a choice for other processes."""
    if cache is not None:
        write_atomically(_path(cache, key), json.dumps(asdict(choice), indent=1).encode())


@contextmanager
def one_at_a_time(cache: Path | None, key: str) -> Iterator[None]:
    """Let one process measure, while others with the same cache wait."""
    if cache is None:
        yield
        return
    cache.mkdir(parents=True, exist_ok=True)
    with _path(cache, key).with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _path(cache: Path, key: str) -> Path:
    return cache / f"{key}.json"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} {platform.processor()}"
