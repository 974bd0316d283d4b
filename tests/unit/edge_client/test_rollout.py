"""Versions come into service and leave it; real engines, a clock of our own."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_client.crash_guard import CrashGuard
from edge_client.inference import Engine, Serving, Version
from edge_client.local_voice import LocalVoice
from edge_client.model_store import ModelStore, version_id
from edge_client.outcomes import Fate, Outcome
from edge_client.rollout import SHIPPED, Rollout
from edge_client.settings import ModelsConfig
from fedge.errors import ModelError
from fedge.task import Examples, Split
from tests.unit.edge_client.engines import answer, make_engine, make_inputs, make_weights
from tests.unit.edge_client.published_versions import KEY, Published, publish

INPUTS = make_inputs(60, seed=3)
CONFIG = ModelsConfig(healthy_s=60.0, probation_s=1000.0, check_s=10.0)


class Labels:
    """Labels that some version would give, as far as they came in."""

    def __init__(self) -> None:
        self.targets = np.zeros(0, np.int64)

    def labelled(self, split: Split) -> Examples:
        return Examples(INPUTS[: len(self.targets)], self.targets)

    def come_in_as_of(self, round: int) -> None:
        self.targets = answer(make_weights(round), INPUTS).argmax(axis=1)


class Device:
    """A device's process; another one on the same folder is its restart."""

    def __init__(
        self,
        folder: Path,
        *,
        private: bool = False,
        shipped: Callable[[], Engine | None] = lambda: None,
    ) -> None:
        self.now = 0.0
        self.labels = Labels()
        self.store = ModelStore(folder / "models", KEY.public_key())
        self.serving = Serving()
        self.guard = CrashGuard(folder / "models", CONFIG.max_crashes, CONFIG.max_kills)
        self.told: list[Outcome] = []
        self.rewatched = 0
        self.rollout = Rollout(
            self.store,
            self.serving,
            CONFIG,
            guard=self.guard,
            voice=LocalVoice(self.labels, CONFIG),
            fallback=shipped,
            private=private,
            clock=lambda: self.now,
        )
        self.rollout.open(crashed=True)  # if it died at all
        self.rollout.listen(self.told.append, self._rewatch)

    def _rewatch(self) -> None:
        self.rewatched += 1

    def take(self, published: Published) -> None:
        content, signature, blobs = published.args
        if self.rollout.wants(published.manifest, content):
            self.rollout.take(content, signature, blobs)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.rollout.check()

    @property
    def round(self) -> int | None:
        engine = self.serving.engine
        if engine is None:
            return None
        expected = answer(make_weights(engine.version.round), INPUTS)
        np.testing.assert_allclose(
            self.serving.predict(INPUTS).output, expected, rtol=1e-5, atol=1e-5
        )
        return engine.version.round

    @property
    def fates(self) -> list[tuple[str, Fate]]:
        return [(outcome.version, outcome.fate) for outcome in self.told]


def id_of(round: int) -> str:
    return version_id(publish(round).args[0])


def test_versions_are_taken_served_and_told(tmp_path: Path) -> None:
    device = Device(tmp_path)
    assert device.round is None
    for round in (1, 2):
        device.take(publish(round))
        assert device.round == round
    assert device.fates == [(id_of(1), Fate.SERVED), (id_of(2), Fate.SERVED)]
    assert Device(tmp_path).round == 2
    assert device.rollout.names_version


def test_what_failed_is_told_and_the_version_before_goes_on(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    bad = publish(2, outputs_off=0.5)
    with pytest.raises(ModelError, match="self-test"):
        device.take(bad)
    assert device.round == 1
    assert device.told[-1].fate is Fate.REJECTED
    assert "self-test" in device.told[-1].reason
    device.take(publish(3))
    assert device.round == 3


def test_labels_keep_a_worse_version_from_being_served_or_installed(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    device.labels.come_in_as_of(1)
    with pytest.raises(ModelError, match="labelled samples of this device"):
        device.take(publish(2))
    assert device.round == 1
    assert [stored.version.round for stored in device.store.versions()] == [1]
    [outcome] = device.told[1:]
    assert (outcome.fate, outcome.metric_before, outcome.num_labelled) == (Fate.REJECTED, 1.0, 60)
    with pytest.raises(ModelError, match="was refused here"):
        device.take(publish(2))
    with pytest.raises(ModelError, match="was refused here"):
        device.store.install(*publish(2).args)


def test_labels_that_come_in_later_take_a_version_back(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    device.take(publish(2))
    device.pass_time(11)
    assert device.round == 2
    device.labels.come_in_as_of(1)
    device.pass_time(11)
    assert device.round == 1
    assert "labelled samples" in device.rollout.problem
    assert device.fates[-1] == (id_of(2), Fate.ROLLED_BACK)
    with pytest.raises(ModelError, match="was refused here"):
        device.take(publish(2))
    assert Device(tmp_path).round == 1
    device.labels.targets = device.labels.targets[:0]
    device.take(publish(3))
    assert device.round == 3
    assert device.rollout.problem == ""


def test_after_its_probation_a_version_is_not_looked_at_again(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    device.take(publish(2))
    device.now += CONFIG.probation_s
    device.labels.come_in_as_of(1)
    device.pass_time(11)
    assert device.round == 2


@pytest.mark.parametrize("later", [False, True])
def test_of_private_labels_the_server_hears_nothing(tmp_path: Path, later: bool) -> None:
    device = Device(tmp_path, private=True)
    device.take(publish(1))
    device.labels.come_in_as_of(1)
    if later:
        targets, device.labels.targets = device.labels.targets, device.labels.targets[:0]
        device.take(publish(2))
        device.labels.targets = targets
        device.pass_time(11)
    else:
        with pytest.raises(ModelError, match="labelled samples"):
            device.take(publish(2))
    with pytest.raises(ModelError, match="was refused here"):
        device.take(publish(2))
    assert device.round == 1
    # The very reports of a device whose labels have nothing against the version.
    assert device.fates == [(id_of(1), Fate.SERVED), (id_of(2), Fate.SERVED)]
    assert not device.rollout.names_version
    assert all(outcome.metric is None and not outcome.reason for outcome in device.told)


def test_a_version_that_the_daemon_dies_under_is_left_for_the_one_before(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    device.pass_time(61)
    device.take(publish(2))
    for _ in range(2):
        assert Device(tmp_path).round == 2
    device = Device(tmp_path)
    assert device.round == 1
    assert device.fates == [(id_of(2), Fate.ROLLED_BACK)]
    assert "died again and again" in device.rollout.problem
    with pytest.raises(ModelError, match="died again and again"):
        device.take(publish(2))
    device.take(publish(3))
    assert device.round == 3


def test_a_version_that_kills_the_daemon_while_it_is_loaded_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KilledError

    first = Device(tmp_path)
    first.take(publish(1))
    first.pass_time(61)
    for _ in range(3):
        device = Device(tmp_path)
        monkeypatch.setattr(device.store, "prepare", kill)
        monkeypatch.setattr(device.guard, "trying", _only_forward(device.guard))
        with pytest.raises(KilledError):
            device.take(publish(2))
    device = Device(tmp_path)
    assert device.round == 1
    with pytest.raises(ModelError, match="died again and again"):
        device.take(publish(2))


def _only_forward(guard: CrashGuard) -> Callable[[str], str]:
    """Return `trying` of a process that is dead when it should take its note back."""
    trying = guard.trying

    def note(version: str) -> str:
        return trying(version) if version == id_of(2) else version

    return note


def test_a_device_whose_disk_turned_read_only_serves_however_often_it_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    device.take(publish(2))
    for _ in range(CONFIG.max_crashes - 1):
        Device(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for module in ("version_choices", "crash_guard"):
        monkeypatch.setattr(f"edge_client.{module}.write_atomically", fail)
    device = Device(tmp_path)
    assert device.round == 2
    assert "Read-only file system" in device.rollout.problem


def test_where_every_version_dies_the_newest_is_served_again(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    device.pass_time(61)
    device.take(publish(2))
    rounds = [Device(tmp_path).round for _ in range(8)]
    assert rounds == [2, 2, 1, 1, 1, 2, 2, 2]


def test_deaths_of_a_healthy_version_or_after_a_clean_stop_do_not_count(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    device.take(publish(2))
    for _ in range(6):
        device = Device(tmp_path)
        assert device.round == 2
        device.pass_time(61)
    for _ in range(6):
        device = Device(tmp_path)
        assert device.round == 2
        device.rollout.stop()


def test_without_another_version_the_shipped_one_serves(tmp_path: Path) -> None:
    device = Device(tmp_path, shipped=lambda: make_engine(0))
    assert device.serving.version == Version(0, make_engine(0).version.digest)
    device.take(publish(2))
    for _ in range(2):
        assert Device(tmp_path, shipped=lambda: make_engine(0)).round == 2
    device = Device(tmp_path, shipped=lambda: make_engine(0))
    assert device.round == 0
    assert device.guard.trying(SHIPPED) == SHIPPED


def test_a_pin_holds_against_new_versions_until_it_is_taken_off(tmp_path: Path) -> None:
    device = Device(tmp_path)
    for round in (1, 2):
        device.take(publish(round))
    device.store.choices.pin(id_of(1))
    device.pass_time(1)
    assert device.round == 1
    device.take(publish(3))
    assert device.round == 1
    assert Device(tmp_path).round == 1
    assert device.rewatched == 1
    device.store.choices.pin("")
    device.pass_time(1)
    assert device.rewatched == 2
    device.take(publish(3))
    assert device.round == 3


def test_a_rollback_by_hand_is_followed_and_told(tmp_path: Path) -> None:
    device = Device(tmp_path)
    for round in (1, 2):
        device.take(publish(round))
    device.store.choices.refuse(id_of(2), "by hand")
    device.pass_time(1)
    assert device.round == 1
    assert device.told[-1] == Outcome(id_of(2), Fate.ROLLED_BACK, "by hand")


def test_an_older_round_is_not_wanted_and_a_replayed_one_refused(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(5))
    content, signature, blobs = publish(4).args
    assert not device.rollout.wants(publish(4).manifest, content)
    with pytest.raises(ModelError, match="is older than round 5"):
        device.rollout.take(content, signature, blobs)
    assert device.round == 5


def test_what_is_here_already_is_told_again_and_not_swapped(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    engine = device.serving.engine
    device.take(publish(1))
    assert device.serving.engine is engine
    assert device.fates == [(id_of(1), Fate.SERVED)] * 2


def test_refused_versions_do_not_push_out_the_good_ones(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    for round in range(2, 8):
        device.take(publish(round))
        device.store.choices.refuse(id_of(round), "by hand")
        device.pass_time(1)
        assert device.round == 1
    assert Device(tmp_path).round == 1


def test_another_protocol_is_named_and_the_version_before_serves(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.take(publish(1))
    other = dataclasses.replace(publish(2).manifest, protocol=99)
    content, signature, blobs = dataclasses.replace(publish(2), manifest=other).args
    with pytest.raises(ModelError, match="speaks protocol 99"):
        device.rollout.take(content, signature, blobs)
    assert device.round == 1
