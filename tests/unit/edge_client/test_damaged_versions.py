"""Two hundred damaged files: none is used, the version before serves, a whole one heals it."""

from pathlib import Path

import numpy as np
import pytest

from fedge.errors import ModelError
from tests.unit.edge_client.engines import answer, make_weights
from tests.unit.edge_client.test_model_store import INPUTS, files_of, open_store, publish
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
