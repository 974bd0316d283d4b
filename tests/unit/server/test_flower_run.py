"""What dies is started again, with patience, and not for ever."""

import threading
from pathlib import Path
from typing import cast

import pytest

from fedge.errors import TransportError
from server import flower_run
from server.app_bundle import AppBundle
from server.flower_run import MAX_ATTEMPTS, FlowerRun
from server.superlink import Health, StopRequested, SuperLink


class StandInSuperLink:
    """A SuperLink whose processes live and die as the test says."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.health = Health(superlink=False, server_app=False)
        self.refuses_start = 0
        self.log_path = Path("superlink.log")

    def start(self) -> None:
        self.calls.append("start")
        if self.refuses_start:
            self.refuses_start -= 1
            raise TransportError("it ended with status 1")
        self.health = Health(superlink=True, server_app=False)

    def end(self) -> None:
        self.calls.append("end")
        self.health = Health(superlink=False, server_app=False)

    def submit(self, bundle: AppBundle) -> int:
        self.calls.append("submit")
        self.health = Health(superlink=True, server_app=True)
        return 17

    def look(self) -> Health:
        return self.health

    def save_log(self, run_id: int, path: Path) -> str:
        self.calls.append("save_log")
        return "ValueError: last words"


class Setting:
    def __init__(self) -> None:
        self.superlink = StandInSuperLink()
        self.stop = threading.Event()
        self.round: int | None = None
        self.run = FlowerRun(
            cast("SuperLink", self.superlink),
            AppBundle(Path("app"), Path("run.toml")),
            progress=lambda: self.round,
            log_path=Path("serverapp.log"),
            stop=self.stop,
        )

    def kill_server_app(self) -> None:
        self.superlink.health = Health(superlink=True, server_app=False)

    def kill_superlink(self) -> None:
        self.superlink.health = Health(superlink=False, server_app=False)


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(flower_run, "FIRST_DELAY_S", 0.0)
    setting = Setting()
    setting.run.start()
    return setting


def test_a_healthy_run_misses_nothing(setting: Setting) -> None:
    assert setting.run.missing() == ""
    assert setting.superlink.calls == ["start", "submit"]


def test_a_dead_server_app_is_submitted_again_on_the_same_superlink(setting: Setting) -> None:
    assert setting.run.missing() == ""
    setting.kill_server_app()
    assert setting.run.missing() == "ServerApp"
    setting.run.restore("ServerApp")
    assert setting.superlink.calls == ["start", "submit", "save_log", "submit"]
    assert setting.run.missing() == ""


def test_a_dead_superlink_is_cleared_away_started_and_given_the_run(setting: Setting) -> None:
    setting.kill_superlink()
    assert setting.run.missing() == "SuperLink"
    setting.run.restore("SuperLink")
    assert setting.superlink.calls == ["start", "submit", "end", "start", "submit"]


def test_after_the_run_only_the_superlink_is_restored(setting: Setting) -> None:
    setting.kill_superlink()
    setting.run.restore("SuperLink", resubmit=False)
    assert setting.superlink.calls == ["start", "submit", "end", "start"]


def test_a_superlink_that_does_not_start_at_once_is_tried_again(setting: Setting) -> None:
    setting.kill_superlink()
    setting.superlink.refuses_start = 2
    setting.run.restore("SuperLink")
    assert setting.superlink.calls.count("start") == 4
    assert setting.run.missing() == ""


def test_a_server_app_that_has_not_appeared_yet_is_waited_for(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.kill_server_app()  # never seen alive
    assert setting.run.missing() == ""
    monkeypatch.setattr(flower_run, "APPEAR_S", 0.0)
    assert setting.run.missing() == "ServerApp"


def test_dying_again_and_again_without_progress_ends_with_the_last_words(setting: Setting) -> None:
    for _ in range(MAX_ATTEMPTS):
        setting.kill_server_app()
        setting.run.restore("ServerApp")
    setting.kill_server_app()
    with pytest.raises(TransportError, match=r"without a round in between: .*last words"):
        setting.run.restore("ServerApp")


def test_progress_gives_new_attempts(setting: Setting) -> None:
    for round in range(3 * MAX_ATTEMPTS):
        setting.round = round
        setting.kill_server_app()
        setting.run.restore("ServerApp")
    assert setting.superlink.calls.count("submit") == 1 + 3 * MAX_ATTEMPTS


def test_deaths_that_lie_far_apart_do_not_add_up(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_run, "HEALTHY_S", 0.0)
    for _ in range(3 * MAX_ATTEMPTS):
        setting.kill_superlink()
        setting.run.restore("SuperLink", resubmit=False)
    assert setting.superlink.calls.count("start") == 1 + 3 * MAX_ATTEMPTS


def test_a_stop_ends_the_wait_before_a_restart(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_run, "FIRST_DELAY_S", 3600.0)
    setting.kill_superlink()
    setting.stop.set()
    with pytest.raises(StopRequested):
        setting.run.restore("SuperLink")
