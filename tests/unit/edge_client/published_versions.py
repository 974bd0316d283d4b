"""Signed versions of the digits model, and a store that takes them."""

import dataclasses
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.inference import Version
from edge_client.model_store import ModelStore
from fedge.manifest import Blob, ModelManifest, SelfTest, sign
from fedge.protocol import PROTOCOL_VERSION
from fedge.tflite.selftest import encode_self_test
from tests.unit.edge_client.engines import (
    LAYOUT,
    PLAN,
    TEMPLATE,
    answer,
    make_inputs,
    make_weights,
)

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
INPUTS = make_inputs(6, seed=9)


@dataclasses.dataclass(frozen=True)
class Published:
    """A version as a registry hands it out."""

    manifest: ModelManifest
    blobs: dict[str, bytes]

    @property
    def args(self) -> tuple[bytes, bytes, dict[str, bytes]]:
        content = self.manifest.to_bytes()
        return content, sign(content, KEY), self.blobs

    @property
    def version(self) -> Version:
        return Version(self.manifest.round, self.manifest.weights.digest)


def publish(round: int, run_name: str = "run", outputs_off: float = 0.0) -> Published:
    weights = make_weights(round)
    outputs = answer(weights, INPUTS).astype(np.float32) + np.float32(outputs_off)
    known = encode_self_test(INPUTS, outputs)
    contents = [weights.tobytes(), TEMPLATE, PLAN, known]
    manifest = ModelManifest(
        protocol=PROTOCOL_VERSION,
        run_name=run_name,
        round=round,
        task="digits",
        layout_json=LAYOUT.to_json(),
        weights=Blob.of(contents[0]),
        template=Blob.of(TEMPLATE),
        plan=Blob.of(PLAN),
        self_test=SelfTest(Blob.of(known), INPUTS.shape, outputs.shape),
    )
    return Published(manifest, {Blob.of(content).digest: content for content in contents})


def open_store(root: Path, keep_versions: int = 3) -> ModelStore:
    return ModelStore(root, KEY.public_key(), keep_versions)


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())
