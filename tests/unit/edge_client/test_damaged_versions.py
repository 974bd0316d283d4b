"""Damaged files: none is used, the version before serves, a whole one heals it."""

from pathlib import Path

import numpy as np
import pytest

from fedge.errors import ModelError
from fedge.manifest import Blob
from tests.unit.edge_client.engines import PLAN, TEMPLATE, answer, make_weights
from tests.unit.edge_client.published_versions import INPUTS, files_of, open_store, publish
from tests.unit.fedge.tflite.helpers import flip_bit


@pytest.mark.slow
def test_two_hundred_damaged_files_are_refused_before_use_and_the_old_version_serves(
    tmp_path: Path,
) -> None:
    """Every other one on its way here, the rest on disk; bits flipped and ends cut off."""
    rng, refused = np.random.default_rng(3), 0
    for number in range(100):
        store = open_store(tmp_path / str(number))
        store.install(*publish(1).args)
        serving = store.load_engine(1)
        content, signature, blobs = publish(2).args
        manifest = publish(2).manifest
        names = (manifest.weights, manifest.template, manifest.plan)
        blob = names[number % 3]
        whole = blobs[blob.digest]
        if number % 2:
            damaged = whole[: int(rng.integers(len(whole)))]
        else:
            damaged = flip_bit(whole, int(rng.integers(8 * len(whole))))
        # On its way: nothing of it is kept.
        before = files_of(tmp_path / str(number))
        with pytest.raises(ModelError, match="does not match its hash"):
            store.install(content, signature, {**blobs, blob.digest: damaged})
        assert files_of(tmp_path / str(number)) == before
        refused += 1
        # On disk: a restart does not use it, and a whole one heals it.
        store.install(content, signature, blobs)
        path = tmp_path / str(number) / "blobs" / blob.digest
        path.write_bytes(damaged)
        restarted = open_store(tmp_path / str(number))
        shared = blob in (manifest.template, manifest.plan)
        current = restarted.current()
        assert (current is None) if shared else (current is not None)
        if current is not None:
            assert current.version == publish(1).version
        refused += 1
        restarted.install(*publish(3).args)
        assert restarted.load_engine(1).version == publish(3).version
        np.testing.assert_allclose(
            serving.predict(INPUTS), answer(make_weights(1), INPUTS), rtol=1e-5, atol=1e-5
        )
    assert refused == 200


def rounds_after_damage(root: Path, path: Path, content: bytes) -> int | None:
    """Return which round is served with one file's content replaced; then put it back."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        current = open_store(root).current()
        if current is None:
            return None
        engine = open_store(root).load_engine(1)
        expected = answer(make_weights(engine.version.round), INPUTS)
        np.testing.assert_allclose(engine.predict(INPUTS), expected, rtol=1e-5, atol=1e-5)
        return current.version.round
    finally:
        path.write_bytes(before)


def test_damage_on_disk_never_serves_wrong_weights(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for round in (1, 2):
        store.install(*publish(round).args)
    newest = {blob.digest for blob in (publish(2).manifest.weights,)}
    shared = {Blob.of(TEMPLATE).digest, Blob.of(PLAN).digest}
    rng = np.random.default_rng(1)
    for path in files_of(tmp_path):
        content = path.read_bytes()
        damages = [flip_bit(content, int(bit)) for bit in rng.integers(8 * len(content), size=25)]
        damages += [content[: int(length)] for length in rng.integers(len(content), size=5)]
        for damaged in damages:
            served = rounds_after_damage(tmp_path, path, damaged)
            if path.name in shared:
                assert served is None
            elif path.name in newest or path.name == "00000002.version":
                assert served == 1
            else:
                assert served in (1, 2)  # the pointer, or the older version
