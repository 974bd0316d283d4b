"""Writing weights into a private copy of a TFLite template, and reading them back.

The bytes that `Patcher.patch` returns are new each time. They are given to a new interpreter and
never changed under a live one: a delegate has packed the old weights and would keep using them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import ModelError, UpdateRejected
from fedge.params import BYTES_PER_PARAMETER, Layout, Vector, vector_digest
from fedge.tflite.copies import Copy
from fedge.tflite.graphs import Cut
from fedge.tflite.plan import Plan


class Patcher:
    """A template and its plan, checked against each other once.

    Attributes:
        template: whose copies are patched; never changed.

    Raises:
        ModelError: the template is not the one that the plan was made for, or is damaged.
    """

    def __init__(self, template: bytes, plan: Plan) -> None:
        if len(template) != plan.template_size_bytes:
            raise ModelError(
                f"template: {len(template)} bytes, its plan was made for "
                f"{plan.template_size_bytes}; copy template and plan again, together"
            )
        if skeleton_digest(template, plan.copies) != plan.skeleton:
            raise ModelError(
                "template: not the one that the plan was made for, or damaged; "
                "copy template and plan again, together"
            )
        self.template = bytes(template)
        self.plan = plan

    @staticmethod
    def from_bytes(template: bytes, plan: bytes) -> Patcher:
        """Check the contents of a template file and of a plan file.

        Raises:
            ModelError: either is damaged or they do not belong together.
        """
        try:
            text = plan.decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"plan: not a patching plan: {error}") from error
        return Patcher(template, Plan.from_json(text))

    def patch(self, layout: Layout, weights: Vector, cut: Cut | None = None) -> bytes:
        """Return a new model with these weights in place of the template's.

        Args:
            cut: leaves the first graph alone in it.

        Raises:
            ModelError: another layout, or weights that are not finite.
        """
        self._check_layout(layout)
        try:
            tensors = layout.views(weights)
        except UpdateRejected as error:
            raise ModelError(f"weights do not fit the template: {error}") from error
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise ModelError(f"weights: tensor {name} is not finite")
        # numpy copies without the interpreter lock, so that predictions go on meanwhile. What a
        # BytesIO was made of is written in place and given back: `tobytes` would copy with it.
        patched = io.BytesIO(bytes(len(self.template)))
        with patched.getbuffer() as content:
            _fill(content, self.template, self.plan.copies, tensors)
            if cut is not None:
                cut.shorten(content)
        return patched.getvalue()

    def extract(self, layout: Layout) -> Vector:
        """Return the weights that the template holds; what the graph does not use is zero.

        Raises:
            ModelError: another layout, or a scalar that stands in two places differs.
        """
        self._check_layout(layout)
        vector = np.zeros(layout.size, np.float32)
        tensors = {name: view.reshape(-1) for name, view in layout.views(vector).items()}
        words = _words(self.template)
        for copy in self.plan.copies:
            copy.source_view(tensors[copy.parameter])[...] = copy.file_view(words)
        for alias, source in self.plan.ties:
            tensors[alias][...] = tensors[source]
        for copy in self.plan.copies:
            there, here = copy.file_view(words), copy.source_view(tensors[copy.parameter])
            if not np.array_equal(there, here):
                raise ModelError(f"template: two copies of {copy.parameter} differ: damaged")
        return vector

    def shipped_weights(self) -> Vector:
        """Return the template's own weights, checked against the plan's hash of them.

        Raises:
            ModelError: the template's weights are not those it was shipped with.
        """
        weights = self.extract(self.plan.layout)
        if vector_digest(weights) != self.plan.shipped_weights:
            raise ModelError("template: its weights are damaged; copy template and plan again")
        return weights

    def _check_layout(self, layout: Layout) -> None:
        if layout == self.plan.layout:
            return
        ours = dict(zip(self.plan.layout.names, self.plan.layout.shapes, strict=True))
        theirs = dict(zip(layout.names, layout.shapes, strict=True))
        name = next(
            (name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name)), "order"
        )
        raise ModelError(
            f"weights do not fit the template: tensor {name}: expected {ours.get(name)}, got "
            f"{theirs.get(name)}; convert the model again (python -m server.convert)"
        )


def skeleton_digest(template: bytes, copies: Iterable[Copy]) -> str:
    """Return the SHA-256 (hex) of a template with every weight byte zeroed."""
    content = bytearray(template)
    words = _words(content)
    for copy in copies:
        copy.file_view(words)[...] = 0
    return hashlib.sha256(content).hexdigest()


def _fill(
    content: memoryview,
    template: bytes,
    copies: Iterable[Copy],
    tensors: Mapping[str, npt.NDArray[np.float32]],
) -> None:
    """Write a template with these tensors; no view of the content is left behind."""
    np.copyto(np.frombuffer(content, np.uint8), np.frombuffer(template, np.uint8))
    words = _words(content)
    for copy in copies:
        copy.file_view(words)[...] = copy.source_view(tensors[copy.parameter].reshape(-1))


def _words(content: bytes | bytearray | memoryview) -> npt.NDArray[Any]:
    """View a file's 4-byte words as float32; up to 3 bytes at its end belong to none."""
    return np.frombuffer(content, "<f4", count=len(content) // BYTES_PER_PARAMETER)
