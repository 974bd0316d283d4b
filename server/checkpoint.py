"""Checkpoints of a run: one folder each, whole or not there.

A checkpoint is written into a hidden folder beside its place, every file is synced and hashed
in a manifest, and the folder is renamed. The newest whole one wins; one that was damaged on disk
is passed over with a warning. There is one writer (the ServerApp) and any number of readers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedge.durable import sync_folder, write_synced
from fedge.errors import CheckpointError, TaskError
from fedge.params import Layout, Vector, vector_digest
from server.state_files import pack_state, unpack_state

log = logging.getLogger(__name__)

FORMAT = 1
_MANIFEST = "manifest.json"
_HEADER = "checkpoint.json"
_WEIGHTS = "weights.f32"
_ARRAYS = "arrays.npz"
# A round committed again keeps the one it replaces under ``.old`` until the new one is in place.
_FOLDER_NAME = re.compile(r"round-(\d{6,})(\.old)?")
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, TaskError, CheckpointError)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next round needs and that a kill must not lose.

    Attributes:
        seed: all random streams derive from it and the round, so it is the random state.
        optimizer_state, memory: nested dictionaries and lists of arrays and JSON scalars.
        epsilon: ε spent by each node so far, as it last said.
        exhausted: nodes that have no privacy budget left and are not asked again.
        metrics: this round's line of ``metrics.jsonl``.
    """

    run_name: str
    round: int
    layout: Layout
    weights: Vector
    optimizer_state: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    epsilon: dict[int, float] = field(default_factory=dict)
    exhausted: frozenset[int] = frozenset()
    seed: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the weights: the model version's name."""
        return vector_digest(self.weights)

    def known_only(self, nodes: set[int]) -> Checkpoint:
        """Return the state without what was noted of nodes that are gone.

        A SuperLink that was started again gives each device a new id; under the old one its ε
        would be listed twice. The device's own ledger is the account, and tells it with the next
        update.
        """
        epsilon = {node: value for node, value in self.epsilon.items() if node in nodes}
        return replace(self, epsilon=epsilon, exhausted=self.exhausted & nodes)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: made on the first commit.
        keep: newest checkpoints that stay; older ones are removed after a commit.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder
        self.keep = keep

    def commit(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint as one step and return its folder.

        Raises:
            CheckpointError: it could not be written; the last whole one stands.
        """
        place = self.folder / f"round-{checkpoint.round:06d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            beside = self.folder / f".writing-{checkpoint.round:06d}-{os.getpid()}"
            _write_files(beside, _contents(checkpoint))
            self._put_in_place(beside, place)
            self._tidy(checkpoint.round)
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoint {place}: {error.strerror or error}; "
                "free disk space or correct run_dir, then start the same run again: it resumes"
            ) from error
        return place

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None if none was ever committed.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
        """
        folders = self._folders()
        for _, _, path in folders:
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
                log.warning("%s; trying the one before", error)
        if folders:
            raise CheckpointError(
                f"{self.folder}: none of {len(folders)} checkpoints is whole; move that folder "
                "away to start anew, or restore it from a backup"
            )
        return None

    def latest_round(self) -> int | None:
        """Return the round of the newest checkpoint by its name alone; nothing is read."""
        folders = self._folders()
        return folders[0][0] if folders else None

    def _folders(self) -> list[tuple[int, bool, Path]]:
        """Return (round, is in place, path), newest first."""
        if not self.folder.is_dir():
            return []
        found = []
        for path in self.folder.iterdir():
            match = _FOLDER_NAME.fullmatch(path.name)
            if match:
                found.append((int(match[1]), match[2] is None, path))
        return sorted(found, reverse=True)

    def _put_in_place(self, beside: Path, place: Path) -> None:
        old = place.with_name(place.name + ".old")
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(place, old)
        os.rename(beside, place)
        sync_folder(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def _tidy(self, committed: int) -> None:
        """Remove what is too old; set aside later rounds, damaged ones that a resume went past."""
        rounds = 0
        for round, _, path in self._folders():
            if round > committed:
                aside = path.with_name("set-aside-" + path.name)
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(path, aside)
                continue
            rounds += 1
            if rounds > self.keep:
                shutil.rmtree(path, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for path in self.folder.glob(".writing-*"):
            shutil.rmtree(path, ignore_errors=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint, every byte checked against its manifest.

    Raises:
        CheckpointError: a file is missing or its content is not what was written.
    """
    try:
        files = _read_files(folder)
        header = json.loads(files[_HEADER])
        layout = Layout.from_json(header["layout"])
        weights = layout.check(np.frombuffer(files[_WEIGHTS], np.dtype("<f4")).copy())
        optimizer_state, memory = unpack_state(header["state"], files[_ARRAYS])
        return Checkpoint(
            run_name=header["run_name"],
            round=header["round"],
            layout=layout,
            weights=weights,
            optimizer_state=optimizer_state,
            memory=memory,
            epsilon={int(node): spent for node, spent in header["epsilon"].items()},
            exhausted=frozenset(header["exhausted"]),
            seed=header["seed"],
            metrics=header["metrics"],
        )
    except _DAMAGE as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error


def _contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    state, arrays = pack_state([checkpoint.optimizer_state, checkpoint.memory])
    header = {
        "run_name": checkpoint.run_name,
        "round": checkpoint.round,
        "seed": checkpoint.seed,
        "layout": checkpoint.layout.to_json(),
        "epsilon": {str(node): spent for node, spent in checkpoint.epsilon.items()},
        "exhausted": sorted(checkpoint.exhausted),
        "metrics": checkpoint.metrics,
        "state": state,
    }
    weights = checkpoint.layout.check(checkpoint.weights).astype("<f4", copy=False)
    return {
        _HEADER: json.dumps(header, indent=1).encode(),
        _WEIGHTS: weights.tobytes(),
        _ARRAYS: arrays,
    }


def _write_files(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in contents.items():
        write_synced(folder / name, content)
    # The manifest holds hashes alone: whatever is changed in it makes the checkpoint damaged.
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = json.dumps({"format": FORMAT, "sha256": hashes}, indent=1)
    write_synced(folder / _MANIFEST, manifest.encode())
    sync_folder(folder)


def _read_files(folder: Path) -> dict[str, bytes]:
    manifest = json.loads((folder / _MANIFEST).read_bytes())
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"its format is {manifest['format']}, this version reads {FORMAT}")
    files = {}
    for name in (_HEADER, _WEIGHTS, _ARRAYS):
        files[name] = (folder / name).read_bytes()
        if hashlib.sha256(files[name]).hexdigest() != manifest["sha256"][name]:
            raise CheckpointError(f"{name} does not match its hash")
    return files
