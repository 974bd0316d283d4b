import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.inference import Version
from edge_client.model_store import ModelStore, load_bundled
from fedge.durable import write_atomically
from fedge.errors import ModelError
from fedge.manifest import Blob, sign
from fedge.params import vector_digest
from fedge.protocol import PROTOCOL_VERSION
from fedge.task import EdgeFiles
from fedge.tasks.digits import Digits
from tests.unit.edge_client.engines import (
    FOLDER,
    PATCHER,
    PLAN,
    TEMPLATE,
    answer,
    make_weights,
)
from tests.unit.edge_client.published_versions import (
    INPUTS,
    Published,
    files_of,
    open_store,
    publish,
)
from tests.unit.fedge.tflite.helpers import flip_bit


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return open_store(tmp_path / "models")


def test_an_installed_version_is_served_as_torch_would_answer(store: ModelStore) -> None:
    published = publish(4)
    assert store.install(*published.args) == published.version
    engine = store.load_engine(1)
    assert engine.version == published.version
    expected = answer(make_weights(4), INPUTS)
    np.testing.assert_allclose(engine.predict(INPUTS), expected, rtol=1e-5, atol=1e-5)


def test_versions_survive_a_restart(tmp_path: Path) -> None:
    for round in (1, 2):
        open_store(tmp_path).install(*publish(round).args)
    again = open_store(tmp_path)
    current = again.current()
    assert current is not None
    assert (current.version, current.manifest) == (publish(2).version, publish(2).manifest)
    assert [stored.version.round for stored in again.versions()] == [2, 1]


def test_an_empty_store_has_nothing_to_serve(store: ModelStore) -> None:
    assert store.current() is None
    assert store.versions() == []
    with pytest.raises(ModelError, match="holds no model version that is whole"):
        store.load_engine(1)


def test_template_and_plan_need_to_come_only_once(store: ModelStore) -> None:
    store.install(*publish(1).args)
    content, signature, blobs = publish(2).args
    assert store.has_blob(Blob.of(TEMPLATE).digest)
    assert store.has_blob(Blob.of(PLAN).digest)
    new = {digest: blob for digest, blob in blobs.items() if not store.has_blob(digest)}
    assert len(new) == 2  # weights and known answers
    assert store.install(content, signature, new).round == 2


def test_a_blob_that_is_nowhere_is_named(store: ModelStore) -> None:
    content, signature, blobs = publish(1).args
    del blobs[Blob.of(TEMPLATE).digest]
    with pytest.raises(ModelError, match=r"template: .* cannot be read"):
        store.install(content, signature, blobs)


def test_only_the_last_versions_and_their_blobs_are_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep_versions=2)
    for round in range(1, 6):
        store.install(*publish(round).args)
    assert [stored.version.round for stored in store.versions()] == [5, 4]
    assert len(files_of(tmp_path / "versions")) == 2
    assert len(files_of(tmp_path / "blobs")) == 2 + 2 * 2  # shared files, then two a version


def test_the_same_version_again_changes_nothing(store: ModelStore, tmp_path: Path) -> None:
    store.install(*publish(1).args)
    store.install(*publish(2).args)
    before = {path: path.stat().st_mtime_ns for path in files_of(tmp_path)}
    assert store.install(*publish(2).args) == publish(2).version
    assert {path: path.stat().st_mtime_ns for path in files_of(tmp_path)} == before


def test_an_older_round_of_the_same_run_is_refused_unless_asked_for(store: ModelStore) -> None:
    store.install(*publish(5).args)
    with pytest.raises(ModelError, match=r"round 4 of 'run' is older than round 5"):
        store.install(*publish(4).args)
    assert store.load_engine(1).version.round == 5
    assert store.install(*publish(4).args, allow_older=True).round == 4
    assert store.load_engine(1).version.round == 4


def test_another_run_may_begin_at_any_round(store: ModelStore) -> None:
    store.install(*publish(5).args)
    assert store.install(*publish(1, run_name="next").args).round == 1
    assert store.load_engine(1).version == publish(1).version


def replaced(published: Published, **changes: object) -> Published:
    return Published(
        dataclasses.replace(published.manifest, **changes),  # type: ignore[arg-type]
        published.blobs,
    )


def with_blob(published: Published, name: str, content: bytes) -> Published:
    changed = replaced(published, **{name: Blob.of(content)})
    return Published(changed.manifest, {**published.blobs, Blob.of(content).digest: content})


def nan_weights() -> bytes:
    weights = make_weights(6)
    weights[17] = np.nan
    return weights.tobytes()


BAD: dict[str, Callable[[], Published]] = {
    "protocol": lambda: replaced(publish(6), protocol=PROTOCOL_VERSION + 1),
    "tensor 0.weight: expected (64, 64), got None": lambda: replaced(
        publish(6), layout_json='{"names": ["w"], "shapes": [[4810]]}'
    ),
    "layout cannot be read": lambda: replaced(publish(6), layout_json="{"),
    "not finite": lambda: with_blob(publish(6), "weights", nan_weights()),
    "whole float32": lambda: with_blob(publish(6), "weights", make_weights(6).tobytes()[:-1]),
    "do not fit": lambda: with_blob(publish(6), "weights", make_weights(6).tobytes()[:-4]),
    "not a patching plan": lambda: with_blob(publish(6), "plan", b"{}"),
    "template": lambda: with_blob(publish(6), "template", TEMPLATE[:-1]),
    "self-test: the model's answers differ": lambda: publish(6, outputs_off=0.1),
    "self-test: inputs": lambda: replaced(
        publish(6),
        self_test=dataclasses.replace(publish(6).manifest.self_test, input_shape=(3, 128)),
    ),
    "not a model manifest": lambda: replaced(publish(6), round="6"),
    "SHA-256": lambda: replaced(publish(6), plan=Blob("../../../etc/passwd", 1)),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_version_is_refused_before_anything_is_written(
    reason: str, store: ModelStore, tmp_path: Path
) -> None:
    store.install(*publish(5).args)
    before = {path: path.read_bytes() for path in files_of(tmp_path)}
    with pytest.raises(ModelError, match=re.escape(reason)):
        store.install(*BAD[reason]().args)
    assert {path: path.read_bytes() for path in files_of(tmp_path)} == before
    assert store.load_engine(1).version == publish(5).version


def test_a_version_that_another_key_signed_is_refused(store: ModelStore) -> None:
    content, _, blobs = publish(1).args
    forged = sign(content, Ed25519PrivateKey.generate())
    with pytest.raises(ModelError, match="not signed by the pinned release key"):
        store.install(content, forged, blobs)


def test_without_a_pinned_key_nothing_is_installed_and_what_is_there_is_served(
    tmp_path: Path,
) -> None:
    open_store(tmp_path).install(*publish(3).args)
    keyless = ModelStore(tmp_path, None, 3)
    assert keyless.load_engine(1).version == publish(3).version
    with pytest.raises(ModelError, match=r"set registry\.release_public_key"):
        keyless.install(*publish(4).args)


def test_versions_of_a_replaced_key_are_no_longer_served(tmp_path: Path) -> None:
    open_store(tmp_path).install(*publish(3).args)
    assert ModelStore(tmp_path, Ed25519PrivateKey.generate().public_key(), 3).current() is None


def test_flipped_bits_in_what_arrives_are_refused(store: ModelStore) -> None:
    store.install(*publish(1).args)
    content, signature, blobs = publish(2).args
    rng = np.random.default_rng(0)
    for _ in range(40):
        with pytest.raises(ModelError):
            store.install(flip_bit(content, int(rng.integers(8 * len(content)))), signature, blobs)
        with pytest.raises(ModelError):
            store.install(content, flip_bit(signature, int(rng.integers(8 * 64))), blobs)
        digest = sorted(blobs)[int(rng.integers(len(blobs)))]
        damaged = flip_bit(blobs[digest], int(rng.integers(8 * len(blobs[digest]))))
        with pytest.raises(ModelError, match="does not match its hash"):
            store.install(content, signature, {**blobs, digest: damaged})
        with pytest.raises(ModelError, match="does not match its hash"):
            store.install(content, signature, {**blobs, digest: blobs[digest][:-3]})
    assert store.load_engine(1).version == publish(1).version


def test_a_damaged_shared_file_is_asked_for_again_and_heals_the_store(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.install(*publish(1).args)
    digest = Blob.of(TEMPLATE).digest
    (tmp_path / "blobs" / digest).write_bytes(TEMPLATE[:-1] + b"x")
    assert not store.has_blob(digest)
    assert open_store(tmp_path).current() is None
    store.install(*publish(2).args)
    assert [stored.version.round for stored in store.versions()] == [2, 1]


@pytest.mark.parametrize("pointer", [None, b"", b"99\n", b"\xff\xff", b"1"])
def test_a_lost_pointer_serves_the_newest_version(tmp_path: Path, pointer: bytes | None) -> None:
    store = open_store(tmp_path)
    for round in (1, 2):
        store.install(*publish(round).args)
    if pointer is None:
        (tmp_path / "current").unlink()
    else:
        (tmp_path / "current").write_bytes(pointer)
    assert store.load_engine(1).version.round == (1 if pointer == b"1" else 2)


def test_a_kill_between_any_two_writes_leaves_a_version_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    survived = 0
    open_store(tmp_path / "start").install(*publish(1).args)
    for allowed in range(10):
        root = tmp_path / str(allowed)
        shutil.copytree(tmp_path / "start", root)
        left = [allowed]

        def counted(path: Path, content: bytes, left: list[int] = left) -> None:
            if not left[0]:
                raise KilledError
            left[0] -= 1
            write_atomically(path, content)

        monkeypatch.setattr("edge_client.version_files.write_atomically", counted)
        try:
            open_store(root).install(*publish(2).args)
        except KilledError:
            assert open_store(root).load_engine(1).version.round == 1
            monkeypatch.undo()
            open_store(root).install(*publish(2).args)
        else:
            survived += 1
        assert open_store(root).load_engine(1).version.round == 2
    assert survived == 10 - 4  # weights, known answers, manifest, pointer


def test_a_full_disk_is_a_model_error_and_the_old_version_stays(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(*publish(1).args)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_client.version_files.write_atomically", full)
    with pytest.raises(ModelError, match="cannot be written: No space left"):
        store.install(*publish(2).args)
    assert store.load_engine(1).version == publish(1).version


def test_a_folder_that_cannot_be_made_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be kept there"):
        open_store(tmp_path / "file" / "models")


def test_the_bundled_model_is_round_zero_and_checked() -> None:
    files = Digits().edge_files()
    assert files is not None
    engine = load_bundled(files)
    weights = PATCHER.shipped_weights()
    assert engine.version == Version(0, vector_digest(weights))
    np.testing.assert_allclose(
        engine.predict(INPUTS), answer(weights, INPUTS), rtol=1e-5, atol=1e-5
    )


def test_a_damaged_bundled_model_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    files = EdgeFiles(tmp_path / "template.tflite", tmp_path / "plan.json")
    for path in (files.template, files.plan):
        shutil.copy(FOLDER / files.template.name, files.template)
        shutil.copy(FOLDER / files.plan.name, files.plan)
        content = path.read_bytes()
        for bit in rng.integers(8 * len(content), size=60):
            path.write_bytes(flip_bit(content, int(bit)))
            with pytest.raises(ModelError):
                load_bundled(files)
        path.unlink()
        with pytest.raises(ModelError, match="cannot be read"):
            load_bundled(files)


def test_an_install_reads_each_file_at_most_once_and_the_template_never_again(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(*publish(1).args)
    checked: list[str] = []
    check = Blob.check

    def count(blob: Blob, content: bytes, what: str) -> bytes:
        checked.append(blob.digest)
        return check(blob, content, what)

    monkeypatch.setattr(Blob, "check", count)
    content, signature, blobs = publish(2).args
    new = {digest: blob for digest, blob in blobs.items() if not store.has_blob(digest)}
    store.install(content, signature, new)
    assert sorted(checked) == sorted(new)
