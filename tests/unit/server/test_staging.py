"""Versions in stages: who gets which, what is kept over a restart, what a withdrawal leaves."""

from pathlib import Path
from typing import Any

import pytest

from fedge.manifest import verify
from server.canary import is_canary
from server.publisher import PublishedVersion, Publisher, Stage
from server.settings import CanaryConfig
from server.staging import Staging
from tests.unit.server.test_publisher import KEY, model, publisher

CANARIES = CanaryConfig(fraction=0.5, trial_s=60.0)


class Server:
    """A server's process; another one on the same folder is its restart."""

    def __init__(self, folder: Path, config: CanaryConfig = CANARIES) -> None:
        self.now = 0.0
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.publisher: Publisher = publisher(folder, keep_versions=4)
        self.staging = Staging(
            self.publisher,
            config,
            lambda kind, **fields: self.events.append((kind, fields)),
            lambda: self.now,
        )

    def publish(self, round: int) -> None:
        self.staging.publish(round, model(float(round)))

    def round_for(self, node: str) -> int | None:
        version = self.staging.version_for(node)
        return None if version is None else version.manifest.round

    def tell(self, node: str) -> PublishedVersion:
        version = self.staging.version_for(node)
        assert version is not None
        self.staging.told(node, version)
        return version

    def pass_trial(self) -> None:
        self.now += CANARIES.trial_s
        self.staging.check()


def some_node(round: int, *, canary: bool) -> str:
    return next(n for n in map(str, range(99)) if is_canary(n, round, 0.5) == canary)


def test_canaries_get_a_version_first_and_the_others_after_its_trial(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.publish(1)
    server.pass_trial()
    server.publish(2)
    canary, other = some_node(2, canary=True), some_node(2, canary=False)
    assert (server.round_for(canary), server.round_for(other)) == (2, 1)
    server.staging.check()
    assert server.round_for(other) == 1
    server.pass_trial()
    assert (server.round_for(canary), server.round_for(other)) == (2, 2)
    kinds = [kind for kind, _ in server.events]
    assert kinds == ["version-on-trial", "version-promoted"] * 2


def test_the_first_version_of_all_is_on_trial_too(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.publish(0)
    assert server.round_for(some_node(0, canary=True)) == 0
    assert server.round_for(some_node(0, canary=False)) is None


def test_without_a_fraction_all_get_it_at_once(tmp_path: Path) -> None:
    server = Server(tmp_path, CanaryConfig())
    server.publish(1)
    assert server.round_for("anyone") == 1
    assert not server.staging.on_trial
    assert server.events == []


def test_a_withdrawn_version_is_followed_by_the_weights_before_it(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.publish(1)
    server.pass_trial()
    server.publish(2)
    canary, other = some_node(2, canary=True), some_node(2, canary=False)
    bad = server.tell(canary)
    server.staging.report(canary, bad.id, "self-test: the answers differ")
    server.staging.check()
    for node in (canary, other):
        version = server.staging.version_for(node)
        assert version is not None
        manifest = verify(version.content, version.signature, KEY.public_key())
        assert (manifest.round, version.sequence > bad.sequence) == (2, True)
        with server.publisher.open_blob(manifest.weights.digest) as file:
            assert file.read() == model(1.0).weights
    assert server.events[-1] == (
        "version-withdrawn",
        {
            "round": 2,
            "version": bad.id,
            "served": 0,
            "refused": 1,
            "reasons": ["self-test: the answers differ"],
        },
    )


@pytest.mark.parametrize("restart", [False, True])
def test_a_withdrawn_version_is_not_published_again(tmp_path: Path, restart: bool) -> None:
    server = Server(tmp_path)
    server.publish(1)
    server.pass_trial()
    server.publish(2)
    canary = some_node(2, canary=True)
    server.staging.report(canary, server.tell(canary).id, "no")
    server.staging.check()
    before = server.publisher.latest
    server = Server(tmp_path) if restart else server
    server.publish(2)
    assert not server.staging.on_trial
    assert server.publisher.latest == before
    server.publish(3)
    assert server.round_for(some_node(3, canary=True)) == 3


def test_a_first_version_that_is_withdrawn_leaves_none(tmp_path: Path) -> None:
    server = Server(tmp_path, CanaryConfig(fraction=1.0))
    server.publish(0)
    server.staging.report("a", server.tell("a").id, "no")
    server.staging.check()
    assert server.staging.version_for("a") is None


def test_a_restart_begins_the_trial_anew(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.publish(1)
    server.pass_trial()
    server.publish(2)
    server.now += 59.0
    again = Server(tmp_path)
    assert again.staging.on_trial
    assert again.round_for(some_node(2, canary=True)) == 2
    assert again.round_for(some_node(2, canary=False)) == 1
    again.pass_trial()
    assert again.round_for(some_node(2, canary=False)) == 2


def test_switching_canaries_off_ends_a_trial_in_favour(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.publish(1)
    off = Server(tmp_path, CanaryConfig())
    assert off.round_for("anyone") == 1
    assert not off.staging.on_trial


def test_the_version_served_to_all_is_kept_however_many_are_withdrawn(tmp_path: Path) -> None:
    server = Server(tmp_path, CanaryConfig(fraction=1.0, trial_s=60.0))
    server.publish(1)
    server.pass_trial()
    for round in range(2, 9):
        server.publish(round)
        server.staging.report("a", server.tell("a").id, "no")
        server.staging.check()
    version = Server(tmp_path).staging.version_for("a")
    assert version is not None
    assert (version.manifest.round, version.stage) == (8, Stage.PUBLISHED)
    with server.publisher.open_blob(version.manifest.weights.digest) as file:
        assert file.read() == model(1.0).weights
