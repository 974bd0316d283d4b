"""Model versions on the device: verified before they are kept, verified again when loaded.

A version is a signed manifest and the blobs it names. Nothing reaches the disk before signature,
hashes, protocol and known answers were right; the pointer moves last, so that a crash at any
instant leaves the old version or the new. The version served is never the only one kept.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_client.inference import Engine, Version
from edge_client.version_files import SignedManifest, VersionFiles
from fedge.errors import FedgeError, InvalidInput, ModelError
from fedge.manifest import Blob, ModelManifest, verify
from fedge.params import BYTES_PER_PARAMETER, Layout, Vector, vector_digest
from fedge.protocol import PROTOCOL_VERSION
from fedge.task import EdgeFiles
from fedge.tflite.patch import Patcher
from fedge.tflite.selftest import decode_self_test, run_self_test

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Compose = Callable[[str, Layout, Vector], Vector]
"""Returns what a device predicts with: run name, layout and published weights to weights."""


@dataclass(frozen=True)
class StoredVersion:
    """A version that is whole on disk.

    Attributes:
        number: grows with each installation on this device.
    """

    number: int
    version: Version
    manifest: ModelManifest


class ModelStore:
    """The last few versions of one device; safe across threads, one process at a time.

    Args:
        root: folder of its own.
        public_key: the pinned release key. Without it nothing can be installed, and what is on
            disk is served as its hashes say.
        keep_versions: last versions kept, the current one among them.
        compose: puts the device's personal layers into the weights to serve; None has none.
    """

    def __init__(
        self,
        root: Path,
        public_key: Ed25519PublicKey | None,
        keep_versions: int = 3,
        *,
        compose: Compose | None = None,
    ) -> None:
        self._files = VersionFiles(root)
        self._root = root
        self._public_key = public_key
        self._keep_versions = keep_versions
        self._compose = compose
        self._lock = threading.RLock()

    def has_blob(self, digest: str) -> bool:
        """Tell whether a blob is here and whole, so that it need not be fetched."""
        return self._files.has_blob(digest)

    def verify(self, manifest_bytes: bytes, signature: bytes) -> ModelManifest:
        """Return a manifest that the release key signed, so that its blobs may be fetched.

        Raises:
            ModelError: the pinned key did not sign it, or it is of another protocol.
        """
        if self._public_key is None:
            raise ModelError("no release key is pinned: set registry.release_public_key")
        manifest = verify(manifest_bytes, signature, self._public_key)
        _check_protocol(manifest)
        return manifest

    def install(
        self,
        manifest_bytes: bytes,
        signature: bytes,
        blobs: Mapping[str, bytes],
        *,
        allow_older: bool = False,
    ) -> Version:
        """Verify, patch, self-test and keep a version, then make it the current one.

        Args:
            manifest_bytes: canonical JSON, as signed.
            signature: of exactly these bytes.
            blobs: by digest; those that `has_blob` may be left out.
            allow_older: take a round older than the current one of the same run.

        Raises:
            ModelError: it must not be used, or cannot be written; the version before stays
                current.
        """
        manifest = self.verify(manifest_bytes, signature)
        with self._lock:
            current = self.current()
            if current is not None and current.manifest == manifest:
                return current.version
            if current is not None and not allow_older:
                _check_not_older(manifest, current.manifest)
            contents = self._collect(manifest, blobs)
            engine = _make_engine(manifest, contents, num_threads=1)
            for content in contents.values():
                self._files.write_blob(content)
            number = self._files.write_version(SignedManifest(manifest_bytes, signature))
            self._files.point_to(number)
            self._prune()
        logger.info("installed round %d of %s", manifest.round, manifest.run_name)
        return engine.version

    def current(self) -> StoredVersion | None:
        """Return the version to serve: the pointed one, or else the newest that is whole."""
        found = self._load_current(num_threads=1)
        return found[0] if found else None

    def load_engine(self, num_threads: int) -> Engine:
        """Return an engine of the version to serve, every byte of it checked again.

        Raises:
            ModelError: no version is whole; serve the one shipped (`load_bundled`).
        """
        found = self._load_current(num_threads)
        if found is None:
            raise ModelError(f"{self._root} holds no model version that is whole (see the log)")
        return found[1]

    def versions(self) -> list[StoredVersion]:
        """Return the versions whose manifest and blobs are whole, newest first."""
        found = []
        with self._lock:
            for number in self._files.numbers():
                try:
                    manifest = self._read_manifest(number)
                    self._collect(manifest, {})
                except ModelError as error:
                    logger.warning("model version %d: %s", number, error)
                else:
                    found.append(StoredVersion(number, _version_of(manifest), manifest))
        return found

    def _load_current(self, num_threads: int) -> tuple[StoredVersion, Engine] | None:
        with self._lock:
            for number in self._by_preference():
                try:
                    manifest = self._read_manifest(number)
                    contents = self._collect(manifest, {})
                    engine = _make_engine(manifest, contents, num_threads, self._compose)
                except ModelError as error:
                    logger.warning("model version %d is not used: %s", number, error)
                    continue
                return StoredVersion(number, engine.version, manifest), engine
        return None

    def _by_preference(self) -> list[int]:
        """Return the numbers of all versions, the pointed one first, then newest first."""
        pointed = self._files.pointed()
        return sorted(self._files.numbers(), key=lambda number: (number != pointed, -number))

    def _read_manifest(self, number: int) -> ModelManifest:
        signed = self._files.read_version(number)
        if self._public_key is not None:
            manifest = verify(signed.manifest, signed.signature, self._public_key)
        else:
            manifest = ModelManifest.from_bytes(signed.manifest)
        _check_protocol(manifest)
        return manifest

    def _collect(self, manifest: ModelManifest, given: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return every blob of a manifest by digest, hashed, given ones before stored ones."""
        contents = {}
        for what, blob in blobs_of(manifest).items():
            if blob.digest in given:
                contents[blob.digest] = blob.check(given[blob.digest], what)
            else:
                contents[blob.digest] = self._files.read_blob(blob, what)
        return contents

    def _prune(self) -> None:
        """Keep the last few whole versions and the blobs that they name."""
        keep = self.versions()[: self._keep_versions]
        blobs = [blob for stored in keep for blob in blobs_of(stored.manifest).values()]
        self._files.prune([stored.number for stored in keep], [blob.digest for blob in blobs])


def load_bundled(edge_files: EdgeFiles, num_threads: int = 1) -> Engine:
    """Return an engine of a task's template as shipped, round 0.

    Raises:
        ModelError: a file is missing or damaged, or they do not belong together.
    """
    try:
        template, plan = edge_files.template.read_bytes(), edge_files.plan.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{error.filename} cannot be read: {error.strerror}; make it again with "
            "python -m server.convert"
        ) from error
    weights = Patcher.from_bytes(template, plan).shipped_weights()
    return Engine(template, Version(0, vector_digest(weights)), num_threads)


def _make_engine(
    manifest: ModelManifest,
    contents: Mapping[str, bytes],
    num_threads: int,
    compose: Compose | None = None,
) -> Engine:
    """Patch the weights into the template and check the known answers; then compose."""
    patcher = Patcher.from_bytes(contents[manifest.template.digest], contents[manifest.plan.digest])
    weights = _read_weights(contents[manifest.weights.digest])
    layout, version = _read_layout(manifest.layout_json), _version_of(manifest)
    engine = Engine(patcher.patch(layout, weights), version, num_threads)
    test = manifest.self_test
    inputs, expected = decode_self_test(
        contents[test.blob.digest], test.input_shape, test.output_shape
    )
    _check_answers(engine, inputs, expected, test.tolerance)
    own = weights if compose is None else compose(manifest.run_name, layout, weights)
    return engine if own is weights else Engine(patcher.patch(layout, own), version, num_threads)


def _check_answers(engine: Engine, inputs: Array, expected: Array, tolerance: float) -> None:
    """Check the known answers one by one, and in every batch size that the model has."""

    def one_by_one(batch: Array) -> Array:
        return np.stack([engine.predict(example) for example in batch])

    inputs = inputs.astype(engine.input_dtype)
    try:
        run_self_test(one_by_one, inputs, expected, tolerance)
        for size in engine.batch_sizes[:-1]:
            index = np.arange(size) % len(inputs)
            run_self_test(engine.predict, inputs[index], expected[index], tolerance)
    except InvalidInput as error:
        raise ModelError(f"self-test: {error}") from error


def _check_not_older(manifest: ModelManifest, current: ModelManifest) -> None:
    """Refuse to go back in a run: an old signed manifest may be replayed by anyone."""
    if manifest.run_name == current.run_name and manifest.round < current.round:
        raise ModelError(
            f"round {manifest.round} of {manifest.run_name!r} is older than round "
            f"{current.round}, which this device has; a run that starts over needs a new run_name"
        )


def blobs_of(manifest: ModelManifest) -> dict[str, Blob]:
    """Return every blob that a manifest names, by what it is."""
    return {
        "template": manifest.template,
        "plan": manifest.plan,
        "weights": manifest.weights,
        "self-test": manifest.self_test.blob,
    }


def _version_of(manifest: ModelManifest) -> Version:
    return Version(manifest.round, manifest.weights.digest)


def _read_layout(text: str) -> Layout:
    try:
        return Layout.from_json(text)
    except (FedgeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"manifest: its layout cannot be read: {error!r:.120}") from error


def _read_weights(content: bytes) -> Vector:
    if len(content) % BYTES_PER_PARAMETER:
        raise ModelError(f"weights: {len(content)} bytes are not whole float32 numbers")
    return np.frombuffer(content, "<f4")


def _check_protocol(manifest: ModelManifest) -> None:
    if manifest.protocol != PROTOCOL_VERSION:
        raise ModelError(
            f"this version speaks protocol {manifest.protocol}, this device {PROTOCOL_VERSION}; "
            "upgrade the older of the two"
        )
