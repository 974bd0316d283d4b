"""What a published model version is: a signed list of content-hashed blobs.

The server signs the canonical JSON with the release key; a device pins the public half and
trusts nothing else. Template and plan change only with the architecture, so a device fetches
them once and from then on only weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from fedge.errors import ModelError


@dataclass(frozen=True)
class Blob:
    """Bytes named by their SHA-256 (hex)."""

    digest: str
    size_bytes: int

    @staticmethod
    def of(content: bytes) -> Blob:
        """Return the name of some bytes."""
        return Blob(hashlib.sha256(content).hexdigest(), len(content))

    def check(self, content: bytes, what: str) -> bytes:
        """Return the bytes, or refuse others than those named.

        Raises:
            ModelError: length or hash differs.
        """
        if Blob.of(content) != self:
            raise ModelError(f"{what}: content does not match its hash {self.digest[:12]}")
        return content


@dataclass(frozen=True)
class SelfTest:
    """Known inputs with the outputs they must give.

    Attributes:
        blob: float32 inputs then outputs, row-major, concatenated.
        input_shape, output_shape: with the leading batch dimension.
        tolerance: largest allowed absolute difference, relative to the largest output.
    """

    blob: Blob
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    tolerance: float = 1e-4


@dataclass(frozen=True)
class ModelManifest:
    """One published version.

    Attributes:
        weights: the flat float32 vector; its digest is the version's name.
        layout_json: `fedge.params.Layout.to_json` of the vector.
    """

    protocol: int
    run_name: str
    round: int
    task: str
    layout_json: str
    weights: Blob
    template: Blob
    plan: Blob
    self_test: SelfTest

    def to_bytes(self) -> bytes:
        """Return canonical JSON: the bytes that are signed."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def from_bytes(content: bytes) -> ModelManifest:
        """Read what `to_bytes` wrote.

        Raises:
            ModelError: it is not a manifest.
        """
        try:
            data: dict[str, Any] = json.loads(content)
            for name in ("weights", "template", "plan"):
                data[name] = Blob(**data[name])
            test = dict(data["self_test"])
            test["blob"] = Blob(**test["blob"])
            test["input_shape"] = tuple(test["input_shape"])
            test["output_shape"] = tuple(test["output_shape"])
            return _check_types(ModelManifest(**{**data, "self_test": SelfTest(**test)}))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(f"not a model manifest: {error}") from error


def _check_types(manifest: ModelManifest) -> ModelManifest:
    """Return the manifest, or refuse values that JSON allows and a manifest does not.

    Raises:
        TypeError: names the field.
    """
    test = manifest.self_test
    blobs = (manifest.weights, manifest.template, manifest.plan, test.blob)
    numbers = {
        "protocol": (manifest.protocol,),
        "round": (manifest.round,),
        "size_bytes": tuple(blob.size_bytes for blob in blobs),
        "input_shape": test.input_shape,
        "output_shape": test.output_shape,
    }
    texts = {
        "run_name": (manifest.run_name,),
        "task": (manifest.task,),
        "layout_json": (manifest.layout_json,),
        "digest": tuple(blob.digest for blob in blobs),
    }
    for name, values in numbers.items():
        if not all(type(value) is int and value >= 0 for value in values):
            raise TypeError(f"{name} must be whole numbers >= 0, got {values!r:.80}")
    for name, words in texts.items():
        if not all(isinstance(word, str) for word in words):
            raise TypeError(f"{name} must be text, got {words!r:.80}")
    if not isinstance(test.tolerance, int | float):
        raise TypeError(f"tolerance must be a number, got {test.tolerance!r:.80}")
    return manifest


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the Ed25519 signature of a manifest's bytes."""
    return key.sign(manifest)


def verify(manifest: bytes, signature: bytes, key: Ed25519PublicKey) -> ModelManifest:
    """Return the manifest, or refuse one that the release key did not sign.

    Raises:
        ModelError: the signature is not from the pinned key, or it is not a manifest.
    """
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise ModelError(
            "this version is not signed by the pinned release key: if the server's key was "
            "replaced on purpose, give the device the new registry.release_public_key"
        ) from None
    return ModelManifest.from_bytes(manifest)
