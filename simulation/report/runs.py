"""Reading run folders: a run, or the same settings run with several seeds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError
from simulation.jsonl import read_jsonl
from simulation.run_folder import CONFIG

Rounds = Sequence[Mapping[str, Any]]

METRICS = "metrics.jsonl"

_SEED = re.compile(r"seed-(\d+)")


@dataclass(frozen=True, eq=False)
class SeedRun:
    """One folder with a ``metrics.jsonl``.

    Attributes:
        seed: of the folder's name ``seed-N``; None where it is not called so.
        rounds: committed rounds in order, at least one.
        config: settings as nested dictionaries; None where the folder has none to read.
    """

    folder: Path
    seed: int | None
    rounds: Rounds
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """One line of a comparison.

    Attributes:
        name: short, and different from that of every other run beside it.
        seeds: runs of the same settings, at least one.
        notes: sentences on what could not be read as it should.
    """

    name: str
    folder: Path
    seeds: tuple[SeedRun, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_group(self) -> bool:
        """Tell whether this is a folder of seeds, however many."""
        return self.folder != self.seeds[0].folder

    @property
    def config(self) -> Mapping[str, Any] | None:
        """Settings of the first seed that has them."""
        return next((seed.config for seed in self.seeds if seed.config is not None), None)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs to compare, in the order given, each once.

    A folder is that of a run, of runs ``seed-0``, ``seed-1`` and so on, or of a sweep, which
    stands for all of its combinations.

    Raises:
        ConfigError: a folder is missing, or holds no committed round; the text names it.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        found.update(dict.fromkeys(_run_folders(folder.resolve(), given=folder)))
    names = _short_names(list(found))
    return [_read_run(folder, name) for folder, name in zip(found, names, strict=True)]


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """Return the committed rounds of a metrics file in order; [] if it is not there.

    Of a round that stands there twice the last line counts; what is not a round is left out.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        lines = read_jsonl(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    rounds = {}
    for line in lines:
        number = line.get("round") if isinstance(line, dict) else None
        if isinstance(number, int) and not isinstance(number, bool):
            rounds[number] = line
    return [rounds[number] for number in sorted(rounds)]


def _run_folders(folder: Path, *, given: Path) -> list[Path]:
    """Return the folder itself, or those of a sweep's combinations in it."""
    if not folder.is_dir():
        raise ConfigError(f"{given}: there is no such folder")
    if (folder / METRICS).exists() or _seed_folders(folder):
        return [folder]
    inside = [each for each in _subfolders(folder) if "=" in each.name]
    runs = [each for each in inside if (each / METRICS).exists() or _seed_folders(each)]
    if not runs:
        raise ConfigError(
            f"{given} holds no {METRICS}, nor folders seed-0, seed-1 and so on that do: give the "
            "server.run_dir of a run"
        )
    return runs


def _seed_folders(folder: Path) -> list[Path]:
    """Return the folders ``seed-N`` that have begun, by their number."""
    numbered = [
        (int(match[1]), each)
        for each in _subfolders(folder)
        if (match := _SEED.fullmatch(each.name)) and (each / METRICS).exists()
    ]
    return [each for _, each in sorted(numbered)]


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir())
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror}") from error


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Return the paths less what they share; the folder's own name where nothing is left."""
    if len(folders) < 2:
        return [folder.name for folder in folders]
    shared = os.path.commonpath(folders)
    relative = [os.path.relpath(folder, shared) for folder in folders]
    return [Path(shared).name if name == "." else name for name in relative]


def _read_run(folder: Path, name: str) -> Run:
    members = [folder] if (folder / METRICS).exists() else _seed_folders(folder)
    notes: list[str] = []
    seeds = [_read_seed(member, notes) for member in members]
    begun = tuple(seed for seed in seeds if seed.rounds)
    if not begun:
        where = " and ".join(str(member / METRICS) for member in members)
        raise ConfigError(f"{where}: no round is committed yet, so there is nothing to show")
    notes += [
        f"{seed.folder.name} has no committed round yet." for seed in seeds if not seed.rounds
    ]
    ends = {seed.rounds[-1]["round"] for seed in begun}
    if len(ends) > 1:
        notes.append(
            f"Its seeds end at rounds {min(ends)} to {max(ends)}; what is drawn ends where the "
            "first of them does."
        )
    return Run(name, folder, begun, tuple(notes))


def _read_seed(folder: Path, notes: list[str]) -> SeedRun:
    match = _SEED.fullmatch(folder.name)
    config = _read_config(folder / CONFIG, notes)
    seed = int(match[1]) if match else None
    return SeedRun(folder, seed, read_rounds(folder / METRICS), config)


def _read_config(path: Path, notes: list[str]) -> Mapping[str, Any] | None:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        config = None
    if isinstance(config, dict):
        return config
    notes.append(f"{path.parent.name}/{path.name} cannot be read, so its settings are not shown.")
    return None
