"""From a version's contents to an engine: patched, checked on its known answers, composed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.inference import Engine, Version
from fedge.errors import FedgeError, InvalidInput, ModelError
from fedge.manifest import Blob, ModelManifest
from fedge.params import BYTES_PER_PARAMETER, Layout, Vector, vector_digest
from fedge.task import EdgeFiles
from fedge.tflite.patch import Patcher
from fedge.tflite.selftest import decode_self_test, run_self_test

Array = npt.NDArray[Any]
Compose = Callable[[str, Layout, Vector], Vector]
"""Returns what a device predicts with: run name, layout and published weights to weights."""
Read = Callable[[str, Blob], bytes]
"""Returns a blob's checked content: what it is, and which."""

log = logging.getLogger(__name__)


class VersionLoader:
    """Makes engines; keeps the template and plan of one architecture, checked, in memory.

    Args:
        compose: puts the device's personal layers into the weights to serve; None has none.
    """

    def __init__(self, compose: Compose | None = None) -> None:
        self._compose = compose
        self._patcher: Patcher | None = None
        self._patcher_of: tuple[str, str] | None = None

    def load(self, manifest: ModelManifest, read: Read, num_threads: int) -> Engine:
        """Patch the weights into the template and check the known answers; then compose.

        Args:
            read: asked for template and plan only if they are not those of the last version.

        Raises:
            ModelError: something of it must not be used.
        """
        patcher = self._patcher_for(manifest, read)
        weights = _read_weights(read("weights", manifest.weights))
        layout, version = _read_layout(manifest.layout_json), version_of(manifest)
        engine = Engine(patcher.patch(layout, weights), version, num_threads)
        test = manifest.self_test
        inputs, expected = decode_self_test(
            read("self-test", test.blob), test.input_shape, test.output_shape
        )
        _check_answers(engine, inputs, expected, test.tolerance)
        if self._compose is None:
            return engine
        own = self._compose(manifest.run_name, layout, weights)
        if own is weights:
            return engine
        try:
            composed = Engine(patcher.patch(layout, own), version, num_threads)
            _check_finite(composed, inputs)
        except ModelError as error:  # the published model is well, and better than none
            log.error("the layers kept on this device are left out: %s", error)
            return engine
        return composed

    def _patcher_for(self, manifest: ModelManifest, read: Read) -> Patcher:
        wanted = (manifest.template.digest, manifest.plan.digest)
        if self._patcher is None or self._patcher_of != wanted:
            template, plan = read("template", manifest.template), read("plan", manifest.plan)
            self._patcher = Patcher.from_bytes(template, plan)
            self._patcher_of = wanted
        return self._patcher


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


def version_of(manifest: ModelManifest) -> Version:
    """Return what answers of a manifest's version say they come from."""
    return Version(manifest.round, manifest.weights.digest)


def blobs_of(manifest: ModelManifest) -> Mapping[str, Blob]:
    """Return every blob that a manifest names, by what it is."""
    return {
        "template": manifest.template,
        "plan": manifest.plan,
        "weights": manifest.weights,
        "self-test": manifest.self_test.blob,
    }


def _check_finite(engine: Engine, inputs: Array) -> None:
    for example in inputs.astype(engine.input_dtype):
        if not np.isfinite(engine.predict(example)).all():
            raise ModelError("they give NaN or Inf on inputs that the model is tested with")


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


def _read_layout(text: str) -> Layout:
    try:
        return Layout.from_json(text)
    except (FedgeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"manifest: its layout cannot be read: {error!r:.120}") from error


def _read_weights(content: bytes) -> Vector:
    if len(content) % BYTES_PER_PARAMETER:
        raise ModelError(f"weights: {len(content)} bytes are not whole float32 numbers")
    return np.frombuffer(content, "<f4")
