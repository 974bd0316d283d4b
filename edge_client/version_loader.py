"""From a version's contents to an engine: patched, checked on its known answers, composed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.engine_maker import EngineMaker
from edge_client.inference import Engine, Version
from fedge.errors import FedgeError, InvalidInput, ModelError
from fedge.manifest import Blob, ModelManifest
from fedge.params import BYTES_PER_PARAMETER, Layout, Vector, vector_digest
from fedge.task import EdgeFiles
from fedge.tflite.patch import Patcher
from fedge.tflite.runner import Runner
from fedge.tflite.selftest import decode_self_test, run_self_test

Array = npt.NDArray[Any]
Compose = Callable[[str, Layout, Vector], Vector]
"""Returns what a device predicts with: run name, layout and published weights to weights."""
Read = Callable[[str, Blob], bytes]
"""Returns a blob's checked content: what it is, and which."""

_LARGER = np.float32(1.25)  # with the same signs: a model may take roots of its weights

log = logging.getLogger(__name__)


class VersionLoader:
    """Makes engines; keeps the template and plan of one architecture, checked, in memory.

    Args:
        compose: puts the device's personal layers into the weights to serve; None has none.
    """

    def __init__(self, compose: Compose | None = None) -> None:
        self._compose = compose
        self._maker: EngineMaker | None = None
        self._maker_of: tuple[str, str] | None = None
        self._are_batches_checked = False

    def load(self, manifest: ModelManifest, read: Read, num_threads: int) -> Engine:
        """Patch the weights into the template and check the known answers; then compose.

        Args:
            read: asked for template and plan only if they are not those of the last version.

        Raises:
            ModelError: something of it must not be used.
        """
        maker = self._maker_for(manifest, read)
        weights = _read_weights(read("weights", manifest.weights))
        layout, version = _read_layout(manifest.layout_json), version_of(manifest)
        engine = maker.engine(layout, weights, version, num_threads)
        test = manifest.self_test
        inputs, expected = decode_self_test(
            read("self-test", test.blob), test.input_shape, test.output_shape
        )
        inputs = inputs.astype(engine.input_dtype)
        _check_answers(engine, inputs, expected, test.tolerance)
        if not self._are_batches_checked:
            _check_batches(maker, layout, weights, inputs, test.tolerance, num_threads)
            self._are_batches_checked = True
        if self._compose is None:
            return engine
        own = self._compose(manifest.run_name, layout, weights)
        if own is weights:
            return engine
        try:
            composed = maker.engine(layout, own, version, num_threads)
            _check_finite(composed, inputs)
        except ModelError as error:  # the published model is well, and better than none
            log.error("the layers kept on this device are left out: %s", error)
            return engine
        return composed

    def _maker_for(self, manifest: ModelManifest, read: Read) -> EngineMaker:
        wanted = (manifest.template.digest, manifest.plan.digest)
        if self._maker is None or self._maker_of != wanted:
            template, plan = read("template", manifest.template), read("plan", manifest.plan)
            self._maker = EngineMaker(Patcher.from_bytes(template, plan))
            self._maker_of = wanted
            self._are_batches_checked = False
        return self._maker


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
    maker = EngineMaker(Patcher.from_bytes(template, plan))
    weights = maker.patcher.shipped_weights()
    layout, version = maker.patcher.plan.layout, Version(0, vector_digest(weights))
    return maker.engine(layout, weights, version, num_threads)


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
    """Check the known answers one by one."""

    def one_by_one(batch: Array) -> Array:
        return np.stack([engine.predict(example) for example in batch])

    try:
        run_self_test(one_by_one, inputs, expected, tolerance)
    except InvalidInput as error:
        raise ModelError(f"self-test: {error}") from error


def _check_batches(
    maker: EngineMaker,
    layout: Layout,
    weights: Vector,
    inputs: Array,
    tolerance: float,
    num_threads: int,
) -> None:
    """Check that batches are answered like their examples one by one, in every size there is.

    Once for an architecture: which graph reads which bytes does not change with the weights. One
    that reads the template's would be right for weights like those, so larger ones are tried too.
    """
    for tried in (weights, weights * _LARGER) if maker.batch_sizes else ():
        runner = Runner(maker.patcher.patch(layout, tried), num_threads)
        expected = np.stack([runner.run_one(example) for example in inputs])
        if not np.isfinite(expected).all():  # the larger ones alone: the others' answers are known
            continue
        for size in maker.batch_sizes:
            index = np.arange(size) % len(inputs)
            run_self_test(runner.run, inputs[index], expected[index], tolerance)


def _read_layout(text: str) -> Layout:
    try:
        return Layout.from_json(text)
    except (FedgeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"manifest: its layout cannot be read: {error!r:.120}") from error


def _read_weights(content: bytes) -> Vector:
    if len(content) % BYTES_PER_PARAMETER:
        raise ModelError(f"weights: {len(content)} bytes are not whole float32 numbers")
    return np.frombuffer(content, "<f4")
