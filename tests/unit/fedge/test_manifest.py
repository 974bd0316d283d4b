from __future__ import annotations

import json
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ModelError
from fedge.manifest import Blob, ModelManifest, SelfTest, sign, verify
from fedge.params import Layout

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MANIFEST = ModelManifest(
    protocol=1,
    run_name="spring",
    round=7,
    task="digits",
    layout_json=Layout(("weight",), ((2, 3),)).to_json(),
    weights=Blob.of(b"weights"),
    template=Blob.of(b"template"),
    plan=Blob.of(b"plan"),
    self_test=SelfTest(Blob.of(b"test"), (1, 64), (1, 10), tolerance=1e-5),
)
CONTENT = MANIFEST.to_bytes()
SIGNATURE = sign(CONTENT, KEY)


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_signed_manifest_is_read_back_equal() -> None:
    assert verify(CONTENT, SIGNATURE, KEY.public_key()) == MANIFEST


def test_the_signed_bytes_are_canonical() -> None:
    assert ModelManifest.from_bytes(CONTENT).to_bytes() == CONTENT
    turned = dict(reversed(list(json.loads(CONTENT).items())))
    assert ModelManifest.from_bytes(json.dumps(turned, indent=2).encode()).to_bytes() == CONTENT


def test_two_hundred_flipped_bits_are_refused_each() -> None:
    bits = random.Random(0).sample(range(len(CONTENT) * 8), 200)
    for bit in bits:
        with pytest.raises(ModelError, match="release key"):
            verify(flip(CONTENT, bit), SIGNATURE, KEY.public_key())


def test_every_flipped_bit_of_the_signature_is_refused() -> None:
    for bit in range(len(SIGNATURE) * 8):
        with pytest.raises(ModelError, match="release key"):
            verify(CONTENT, flip(SIGNATURE, bit), KEY.public_key())


@pytest.mark.parametrize("signature", [b"", b"short", SIGNATURE + b"x", bytes(64)])
def test_a_signature_of_another_form_is_refused(signature: bytes) -> None:
    with pytest.raises(ModelError):
        verify(CONTENT, signature, KEY.public_key())


def test_another_key_is_refused_and_the_text_says_what_to_do() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(ModelError, match=r"registry\.release_public_key"):
        verify(CONTENT, sign(CONTENT, other), KEY.public_key())


def test_signed_bytes_that_are_no_manifest_are_refused() -> None:
    with pytest.raises(ModelError, match="not a model manifest"):
        verify(b"{}", sign(b"{}", KEY), KEY.public_key())


def test_a_field_too_few_and_one_too_many_are_refused() -> None:
    for name in json.loads(CONTENT):
        tree = json.loads(CONTENT)
        del tree[name]
        with pytest.raises(ModelError):
            ModelManifest.from_bytes(json.dumps(tree).encode())
    tree = json.loads(CONTENT) | {"more": 1}
    with pytest.raises(ModelError, match="more"):
        ModelManifest.from_bytes(json.dumps(tree).encode())


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        (None, "round", "7"),
        (None, "round", -1),
        (None, "protocol", True),
        (None, "run_name", 5),
        (None, "layout_json", None),
        ("weights", "size_bytes", 1.5),
        ("plan", "digest", 5),
        ("self_test", "input_shape", [1, "x"]),
        ("self_test", "output_shape", 5),
        ("self_test", "tolerance", "small"),
    ],
)
def test_a_value_of_another_type_is_refused(section: str | None, name: str, value: object) -> None:
    tree = json.loads(CONTENT)
    (tree[section] if section else tree)[name] = value
    with pytest.raises(ModelError, match="not a model manifest"):
        ModelManifest.from_bytes(json.dumps(tree).encode())


@given(st.one_of(st.binary(max_size=60), st.sampled_from([b"[]", b"null", b"1", b"[" * 99999])))
def test_any_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ModelError):
        ModelManifest.from_bytes(content)


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_a_blob_takes_its_own_bytes_only(content: bytes, other: bytes) -> None:
    blob = Blob.of(content)
    assert blob.check(content, "weights") is content
    if other != content:
        with pytest.raises(ModelError, match=r"weights: content does not match its hash"):
            blob.check(other, "weights")
