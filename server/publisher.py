"""Published versions: signed, stored durably, and announced to whoever listens.

``blobs/`` holds contents named by their hash, ``versions/`` one small file a version, written
last: a version that is listed is whole. A restarted server serves the newest one again. A version
may be on trial first (`server.staging` says for whom); it becomes the latest or is withdrawn.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedge.durable import write_atomically
from fedge.errors import ModelError
from fedge.manifest import Blob, ModelManifest, sign, verify
from fedge.protocol import PROTOCOL_VERSION
from server.export import ExportedModel

log = logging.getLogger(__name__)

DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION_NAME = re.compile(r"(\d{8})\.json")


class Stage(Enum):
    """How far a version has come."""

    TRIAL = "trial"
    PUBLISHED = "published"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class PublishedVersion:
    """One version as it is served.

    Attributes:
        sequence: order of publication in this run folder.
        content: the manifest's bytes, which the signature covers.
    """

    sequence: int
    manifest: ModelManifest
    content: bytes
    signature: bytes
    stage: Stage = Stage.PUBLISHED

    @property
    def id(self) -> str:
        """What devices call it: the SHA-256 (hex) of the manifest's bytes."""
        return Blob.of(self.content).digest


Listener = Callable[[PublishedVersion], None]


class Publisher:
    """Signs and keeps the versions of one run folder; safe across threads.

    Args:
        folder: made if missing.
        key: the release key.
        run_name: run that versions belong to; those of another run are not served.
        task: name of the task.
        keep_versions: newest versions kept.

    Raises:
        ModelError: the folder cannot be used.
    """

    def __init__(
        self, folder: Path, key: Ed25519PrivateKey, *, run_name: str, task: str, keep_versions: int
    ) -> None:
        self._blobs = folder / "blobs"
        self._versions = folder / "versions"
        self._key = key
        self._run_name = run_name
        self._task = task
        self._keep = keep_versions
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        try:
            for place in (self._blobs, self._versions):
                place.mkdir(parents=True, exist_ok=True)
            self._latest = self._newest_whole(Stage.PUBLISHED)
            self._candidate = self._newest_trial()
        except OSError as error:
            raise ModelError(f"cannot use registry folder {folder}: {error.strerror}") from error

    @property
    def latest(self) -> PublishedVersion | None:
        """The version that is served to all."""
        return self._latest

    @property
    def candidate(self) -> PublishedVersion | None:
        """The version on trial, newer than the latest; None if there is none."""
        return self._candidate

    def listen(self, listener: Listener) -> None:
        """Have a function called with each new version, in the publishing thread."""
        self._listeners.append(listener)

    def publish(
        self, round: int, model: ExportedModel, stage: Stage = Stage.PUBLISHED
    ) -> PublishedVersion:
        """Sign and store a version and announce it; one that is there already stays as it is.

        So does one that was withdrawn: it is returned as that, and is not published again.

        Raises:
            ModelError: it could not be stored; the one before stays served.
        """
        manifest = ModelManifest(
            protocol=PROTOCOL_VERSION,
            run_name=self._run_name,
            round=round,
            task=self._task,
            layout_json=model.layout.to_json(),
            weights=Blob.of(model.weights),
            template=Blob.of(model.template),
            plan=Blob.of(model.plan),
            self_test=model.self_test,
        )
        contents = (model.weights, model.template, model.plan, model.self_test_content)
        with self._lock, self._storing(round):
            for there in (self._latest, self._candidate, self._withdrawn(manifest)):
                if there is not None and there.manifest == manifest:
                    return there
            for content in contents:
                self._store_blob(content)
            version = self._store_version(manifest, stage)
            self._put(version)
            self._tidy()
        self._announce(version)
        return version

    def promote(self) -> PublishedVersion:
        """Make the version on trial the latest and announce it.

        Raises:
            ModelError: there is none, or this cannot be stored.
        """
        with self._lock:
            version = self._end_trial(Stage.PUBLISHED)
            self._put(version)
        self._announce(version)
        return version

    def withdraw(self) -> None:
        """Give up the version on trial; who has it gets the latest one's weights in its place.

        They are signed as the round that was withdrawn, because a device takes nothing older than
        what it has.

        Raises:
            ModelError: there is none, or this cannot be stored.
        """
        with self._lock:
            withdrawn = self._end_trial(Stage.WITHDRAWN)
            if self._latest is None:
                return
            manifest = replace(self._latest.manifest, round=withdrawn.manifest.round)
            with self._storing(manifest.round):
                version = self._store_version(manifest, Stage.PUBLISHED)
            self._put(version)
        self._announce(version)

    def open_blob(self, digest: str) -> BinaryIO:
        """Open a blob for reading; it stays readable when its version is removed meanwhile.

        Raises:
            FileNotFoundError: there is no such blob, or the digest is not one.
        """
        if not DIGEST.fullmatch(digest):
            raise FileNotFoundError(digest)
        return (self._blobs / digest).open("rb")

    def _store_blob(self, content: bytes) -> None:
        path = self._blobs / Blob.of(content).digest
        if not path.is_file() or path.read_bytes() != content:  # a damaged one is replaced
            write_atomically(path, content)

    def _put(self, version: PublishedVersion) -> None:
        if version.stage is Stage.TRIAL:
            self._candidate = version
        else:
            self._latest, self._candidate = version, None

    def _announce(self, version: PublishedVersion) -> None:
        for listener in self._listeners:
            listener(version)

    def _end_trial(self, stage: Stage) -> PublishedVersion:
        if self._candidate is None:
            raise ModelError("no version is on trial")
        version = replace(self._candidate, stage=stage)
        with self._storing(version.manifest.round):
            self._write(version)
        self._candidate = None
        return version

    def _withdrawn(self, manifest: ModelManifest) -> PublishedVersion | None:
        for sequence, path in self._listed():
            with contextlib.suppress(ModelError):
                version = self._read(sequence, path)
                if version.stage is Stage.WITHDRAWN and version.manifest == manifest:
                    return version
        return None

    @contextlib.contextmanager
    def _storing(self, round: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ModelError(
                f"cannot store round {round} in {self._blobs.parent}: {error.strerror}; free "
                "disk space or correct run_dir"
            ) from error

    def _store_version(self, manifest: ModelManifest, stage: Stage) -> PublishedVersion:
        content = manifest.to_bytes()
        numbers = [number for number, _ in self._listed()]
        signature = sign(content, self._key)
        version = PublishedVersion(max(numbers, default=0) + 1, manifest, content, signature, stage)
        self._write(version)
        return version

    def _write(self, version: PublishedVersion) -> None:
        record = {
            "manifest": version.content.decode(),
            "signature": version.signature.hex(),
            "stage": version.stage.value,
        }
        path = self._versions / f"{version.sequence:08d}.json"
        write_atomically(path, json.dumps(record).encode())

    def _listed(self) -> list[tuple[int, Path]]:
        """Return (sequence, file) of every version, newest first."""
        found = []
        for path in self._versions.iterdir():
            match = _VERSION_NAME.fullmatch(path.name)
            if match:
                found.append((int(match[1]), path))
        return sorted(found, reverse=True)

    def _newest_trial(self) -> PublishedVersion | None:
        """Return the version whose trial a restart interrupted."""
        version = self._newest_whole(Stage.TRIAL)
        return version if version is not None and version.sequence > self._served() else None

    def _newest_whole(self, stage: Stage) -> PublishedVersion | None:
        for sequence, path in self._listed():
            try:
                version = self._read(sequence, path)
                if version.manifest.run_name != self._run_name or version.stage is not stage:
                    continue
                for blob in _blobs_of(version.manifest):
                    blob.check((self._blobs / blob.digest).read_bytes(), "blob")
                return version
            except (ModelError, OSError) as error:
                log.warning("published version %s is passed over: %s", path.name, error)
        return None

    def _read(self, sequence: int, path: Path) -> PublishedVersion:
        try:
            record = json.loads(path.read_bytes())
            content = record["manifest"].encode()
            signature = bytes.fromhex(record["signature"])
            stage = Stage(record.get("stage", Stage.PUBLISHED.value))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"not a version file: {error}") from error
        manifest = verify(content, signature, self._key.public_key())
        return PublishedVersion(sequence, manifest, content, signature, stage)

    def _served(self) -> int:
        return 0 if self._latest is None else self._latest.sequence

    def _tidy(self) -> None:
        """Remove versions beyond those kept, and blobs that no version needs."""
        try:
            listed = self._listed()
            needed: set[str] = set()
            kept = listed[: self._keep]
            kept += [entry for entry in listed[self._keep :] if entry[0] == self._served()]
            for sequence, path in kept:
                with contextlib.suppress(ModelError):  # damaged or of another key: never served
                    manifest = self._read(sequence, path).manifest
                    needed.update(blob.digest for blob in _blobs_of(manifest))
            for entry in listed:
                if entry not in kept:
                    entry[1].unlink(missing_ok=True)
            for path in self._blobs.iterdir():
                if path.name not in needed:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("old versions in %s stay for now: %s", self._versions, error)


def _blobs_of(manifest: ModelManifest) -> tuple[Blob, ...]:
    return (manifest.weights, manifest.template, manifest.plan, manifest.self_test.blob)
