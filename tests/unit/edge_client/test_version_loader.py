"""The check of graphs for batches that a new architecture must pass."""

from pathlib import Path

import numpy as np
import pytest

from edge_client import version_loader
from fedge.errors import ModelError
from fedge.tflite.runner import Runner
from tests.unit.edge_client.published_versions import open_store, publish


def test_graphs_for_batches_that_answer_wrongly_are_refused_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Runner):
        def run(self, batch: np.ndarray) -> np.ndarray:
            return super().run(batch) + 1

    monkeypatch.setattr(version_loader, "Runner", Wrong)
    store = open_store(tmp_path)
    for _ in range(2):
        with pytest.raises(ModelError, match="self-test"):
            store.install(*publish(1).args)
    monkeypatch.undo()
    assert store.install(*publish(1).args).round == 1


def test_graphs_for_batches_that_read_other_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[Runner] = []

    class Stale(Runner):
        def run(self, batch: np.ndarray) -> np.ndarray:
            first.append(self)
            return Runner.run(first[0], batch)

    monkeypatch.setattr(version_loader, "Runner", Stale)
    with pytest.raises(ModelError, match="self-test"):
        open_store(tmp_path).install(*publish(1).args)
    assert first[-1] is not first[0]  # with the version's own weights they were right


def test_weights_that_are_only_too_large_when_made_larger_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflowing(Runner):
        def run_one(self, example: np.ndarray) -> np.ndarray:
            return super().run_one(example) * np.float32(np.inf)

    monkeypatch.setattr(version_loader, "Runner", Overflowing)
    assert open_store(tmp_path).install(*publish(1).args).round == 1
