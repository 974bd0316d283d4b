"""Each new checkpoint becomes a version; failures are told and tried again."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedge.errors import ModelError
from fedge.manifest import Blob, SelfTest
from fedge.params import Layout, Vector
from server import publishing
from server.checkpoint import Checkpoint, CheckpointStore
from server.export import ExportedModel, Exporter
from server.publisher import Publisher
from server.publishing import PublishingLoop
from server.staging import Staging

DEADLINE_S = 20.0
LAYOUT = Layout(("weight",), ((2,),))


class StandInExporter:
    """Exports without a template; fails as often as told."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.num_calls = 0

    def export(self, layout: Layout, weights: Vector) -> ExportedModel:
        self.num_calls += 1
        if self.failures:
            raise self.failures.pop(0)
        content = b"self-test"
        return ExportedModel(
            layout=layout,
            weights=weights.tobytes(),
            template=b"template",
            plan=b"{}",
            self_test=SelfTest(Blob.of(content), (1, 2), (1, 2)),
            self_test_content=content,
        )


class Setting:
    def __init__(self, folder: Path) -> None:
        self.store = CheckpointStore(folder / "checkpoints")
        self.exporter = StandInExporter()
        self.publisher = Publisher(
            folder / "registry",
            Ed25519PrivateKey.generate(),
            run_name="run",
            task="digits",
            keep_versions=10,
        )
        self.loop = PublishingLoop(
            self.store, cast("Exporter", self.exporter), Staging(self.publisher)
        )

    def commit(self, round: int) -> None:
        weights = np.full(2, round, np.float32)
        self.store.commit(Checkpoint("run", round, LAYOUT, weights))

    def published(self) -> int | None:
        latest = self.publisher.latest
        return None if latest is None else latest.manifest.round


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    monkeypatch.setattr(publishing, "POLL_S", 0.01)
    monkeypatch.setattr(publishing, "RETRY_S", 0.05)
    setting = Setting(tmp_path)
    setting.loop.start()
    yield setting
    setting.loop.stop(DEADLINE_S)


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, "the condition did not come true in time"
        time.sleep(0.005)


def test_each_checkpoint_is_published_as_it_is_committed(setting: Setting) -> None:
    assert not setting.loop.caught_up()
    for round in range(3):
        setting.commit(round)
        wait_until(setting.loop.caught_up)
        assert setting.published() == round
    assert setting.exporter.num_calls == 3


@pytest.mark.parametrize("error", [ModelError("self-test: broken"), ZeroDivisionError("a bug")])
def test_a_failed_export_is_told_once_and_tried_again(
    setting: Setting, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    setting.exporter.failures = [error, error]
    setting.commit(4)
    wait_until(setting.loop.caught_up)
    assert setting.exporter.num_calls == 3
    assert setting.published() == 4
    assert setting.loop.problem == ""
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1
    assert told[0].startswith("round 4 is not published: ")
    assert str(error) in told[0]


def test_a_newer_checkpoint_takes_the_place_of_one_that_fails(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "RETRY_S", 3600.0)
    setting.exporter.failures = [ModelError("broken")]
    setting.commit(1)
    wait_until(lambda: setting.loop.problem != "")
    assert setting.published() is None
    setting.commit(2)
    wait_until(setting.loop.caught_up)
    assert setting.published() == 2
    assert setting.loop.problem == ""
