"""Models of a wanted size for `swap`, converted once into ``build/``, and versions of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.harness import CannotRun, progress
from benchmarks.tasks.sized_mlp import NUM_INPUTS
from fedge.errors import ModelError
from fedge.manifest import Blob, ModelManifest, SelfTest, sign
from fedge.params import Layout, Vector, vector_digest
from fedge.protocol import PROTOCOL_VERSION
from fedge.tflite.patch import Patcher
from fedge.tflite.runner import Runner
from fedge.tflite.selftest import encode_self_test
from server.convert import (
    MISSING_CONVERTER,
    PLAN_NAME,
    TEMPLATE_NAME,
    convert_in_subprocess,
    find_converter,
)

FOLDER = Path(__file__).resolve().parent.parent / "build" / "swap"
TASK = "benchmarks.tasks.sized_mlp:SizedMlp"
NUM_INPUTS_ASKED = 16
NUM_KNOWN = 4


@dataclass(frozen=True)
class SignedVersion:
    """One version as a registry hands it out."""

    manifest: ModelManifest
    blobs: Mapping[str, bytes]
    content: bytes = b""
    signature: bytes = b""

    def as_round(self, round: int, key: Ed25519PrivateKey) -> SignedVersion:
        """Return the same weights as those of a round, signed."""
        content = replace(self.manifest, round=round).to_bytes()
        return replace(self, content=content, signature=sign(content, key))


class Architecture:
    """A converted model, its inputs and what each version must answer to them.

    Attributes:
        answers: outputs ``[N, 10]`` by the weights' digest, from an interpreter of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.template = (folder / TEMPLATE_NAME).read_bytes()
        self.plan = (folder / PLAN_NAME).read_bytes()
        self.patcher = Patcher.from_bytes(self.template, self.plan)
        generator = np.random.default_rng(0)
        self.inputs = generator.random((NUM_INPUTS_ASKED, NUM_INPUTS), np.float32)
        self.answers: dict[str, npt.NDArray[np.float32]] = {}

    @cached_property
    def layout(self) -> Layout:
        """Layout of the weights."""
        return self.patcher.plan.layout

    def weights(self, seed: int) -> Vector:
        """Return weights that are like those of trained layers in size."""
        normal = np.random.default_rng(seed).standard_normal(self.layout.size, np.float32)
        return normal * np.float32(0.05)


def architecture(hidden: int) -> Architecture:
    """Return a model of that size; it is converted if that was not done before.

    Raises:
        CannotRun: there is no converter.
    """
    folder = FOLDER / f"mlp-{hidden}"
    if not ((folder / TEMPLATE_NAME).is_file() and (folder / PLAN_NAME).is_file()):
        python = find_converter()
        if python is None:
            raise CannotRun(MISSING_CONVERTER)
        progress(f"converting an MLP of {hidden} hidden units into {folder}, once")
        try:
            convert_in_subprocess(TASK, {"hidden": hidden}, folder, python)
        except ModelError as error:
            raise CannotRun(str(error)) from error
    return Architecture(folder)


def sign_versions(model: Architecture, key: Ed25519PrivateKey, number: int) -> list[SignedVersion]:
    """Return versions of different weights and note in the model what they must answer."""
    made = []
    for seed in range(number):
        weights = model.weights(seed)
        runner = Runner(model.patcher.patch(model.layout, weights))
        answers = np.stack([runner.run_one(one) for one in model.inputs])
        model.answers[vector_digest(weights)] = answers
        known = encode_self_test(model.inputs[:NUM_KNOWN], answers[:NUM_KNOWN])
        contents = [weights.tobytes(), model.template, model.plan, known]
        manifest = ModelManifest(
            protocol=PROTOCOL_VERSION,
            run_name="swap",
            round=0,
            task="sized-mlp",
            layout_json=model.layout.to_json(),
            weights=Blob.of(contents[0]),
            template=Blob.of(model.template),
            plan=Blob.of(model.plan),
            self_test=SelfTest(
                Blob.of(known), model.inputs[:NUM_KNOWN].shape, answers[:NUM_KNOWN].shape
            ),
        )
        version = SignedVersion(manifest, {Blob.of(each).digest: each for each in contents})
        made.append(version.as_round(0, key))
    return made
