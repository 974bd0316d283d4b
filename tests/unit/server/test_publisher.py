"""Published versions: signed, durable, bounded, and served again after a restart."""

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedge.errors import ModelError
from fedge.manifest import Blob, SelfTest, verify
from fedge.params import Layout
from server.export import ExportedModel
from server.publisher import PublishedVersion, Publisher

KEY = Ed25519PrivateKey.generate()
LAYOUT = Layout(("weight",), ((3,),))


def model(value: float) -> ExportedModel:
    self_test = np.full(4, value, "<f4").tobytes()
    return ExportedModel(
        layout=LAYOUT,
        weights=np.full(3, value, "<f4").tobytes(),
        template=b"template",
        plan=b"{}",
        self_test=SelfTest(Blob.of(self_test), (1, 2), (1, 2)),
        self_test_content=self_test,
    )


def publisher(
    folder: Path, *, key: Ed25519PrivateKey = KEY, run_name: str = "run", keep_versions: int = 2
) -> Publisher:
    return Publisher(folder, key, run_name=run_name, task="digits", keep_versions=keep_versions)


def stored_blobs(folder: Path) -> set[str]:
    return {path.name for path in (folder / "blobs").iterdir()}


def test_a_version_is_signed_and_its_blobs_can_be_opened(tmp_path: Path) -> None:
    assert publisher(tmp_path).latest is None
    registry = publisher(tmp_path)
    version = registry.publish(3, model(1.0))
    assert registry.latest is version
    manifest = verify(version.content, version.signature, KEY.public_key())
    assert (manifest.round, manifest.run_name, manifest.task) == (3, "run", "digits")
    assert Layout.from_json(manifest.layout_json) == LAYOUT
    with registry.open_blob(manifest.weights.digest) as file:
        assert file.read() == model(1.0).weights


def test_a_restart_serves_the_last_version_with_the_same_signature(tmp_path: Path) -> None:
    first = publisher(tmp_path)
    first.publish(1, model(1.0))
    last = first.publish(2, model(2.0))
    assert publisher(tmp_path).latest == last


def test_listeners_hear_of_each_new_version_and_not_of_the_same_again(tmp_path: Path) -> None:
    registry = publisher(tmp_path)
    heard: list[PublishedVersion] = []
    registry.listen(heard.append)
    registry.publish(1, model(1.0))
    registry.publish(1, model(1.0))
    registry.publish(2, model(1.0))
    assert [version.manifest.round for version in heard] == [1, 2]


def test_only_the_newest_versions_and_their_blobs_are_kept(tmp_path: Path) -> None:
    registry = publisher(tmp_path, keep_versions=2)
    for round in range(5):
        registry.publish(round, model(float(round)))
    kept = {Blob.of(model(value).weights).digest for value in (3.0, 4.0)}
    shared = {Blob.of(b"template").digest, Blob.of(b"{}").digest}
    tests = {Blob.of(model(value).self_test_content).digest for value in (3.0, 4.0)}
    assert stored_blobs(tmp_path) == kept | shared | tests
    assert len(list((tmp_path / "versions").iterdir())) == 2


@pytest.mark.parametrize("damage", ["manifest", "blob", "missing"])
def test_a_damaged_version_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    registry = publisher(tmp_path)
    before = registry.publish(1, model(1.0))
    last = registry.publish(2, model(2.0))
    file = tmp_path / "versions" / "00000002.json"
    blob = tmp_path / "blobs" / last.manifest.weights.digest
    if damage == "manifest":
        record = json.loads(file.read_text())
        record["manifest"] = record["manifest"].replace('"round":2', '"round":9')
        file.write_text(json.dumps(record))
    elif damage == "blob":
        blob.write_bytes(b"x" * blob.stat().st_size)
    else:
        blob.unlink()
    again = publisher(tmp_path)
    assert again.latest == before
    repaired = again.publish(2, model(2.0))
    assert repaired.sequence > last.sequence
    assert publisher(tmp_path).latest == repaired


def test_versions_of_another_key_or_run_are_not_served(tmp_path: Path) -> None:
    publisher(tmp_path).publish(1, model(1.0))
    assert publisher(tmp_path, key=Ed25519PrivateKey.generate()).latest is None
    assert publisher(tmp_path, run_name="other").latest is None
    assert publisher(tmp_path).latest is not None


@pytest.mark.parametrize("digest", ["", "../versions/00000001.json", "A" * 64, "a" * 63, "a" * 64])
def test_what_is_not_the_digest_of_a_blob_opens_nothing(tmp_path: Path, digest: str) -> None:
    registry = publisher(tmp_path)
    registry.publish(1, model(1.0))
    with pytest.raises(FileNotFoundError):
        registry.open_blob(digest)


def test_an_open_blob_stays_readable_when_its_version_goes(tmp_path: Path) -> None:
    registry = publisher(tmp_path, keep_versions=1)
    old = registry.publish(1, model(1.0))
    with registry.open_blob(old.manifest.weights.digest) as file:
        registry.publish(2, model(2.0))
        assert old.manifest.weights.digest not in stored_blobs(tmp_path)
        assert file.read() == model(1.0).weights


def test_a_folder_that_cannot_be_made_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot use registry folder"):
        publisher(tmp_path / "file")
