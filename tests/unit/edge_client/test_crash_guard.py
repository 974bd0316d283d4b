"""Deaths are counted across processes; here each guard is a process of its own."""

from pathlib import Path

import pytest

from edge_client.crash_guard import FILE, Blame, CrashGuard


def start(folder: Path, max_crashes: int = 3, *, crashed: bool = True) -> tuple[CrashGuard, Blame]:
    guard = CrashGuard(folder, max_crashes, max_kills=6)
    return guard, guard.open(crashed=crashed)


def die(folder: Path, version: str, times: int = 1) -> Blame:
    """Let processes crash that serve a version; return what the next one is told."""
    for _ in range(times):
        start(folder)[0].trying(version)
    return start(folder)[1]


def test_a_version_is_blamed_for_the_third_death_in_a_row(tmp_path: Path) -> None:
    guard, blame = start(tmp_path)
    for expected in (Blame(), Blame(), Blame(refuse="v")):
        guard.trying("v")
        guard, blame = start(tmp_path)
        assert blame == expected


def test_of_kills_from_outside_it_takes_more(tmp_path: Path) -> None:
    guard, blame = start(tmp_path)
    for expected in [Blame()] * 5 + [Blame(refuse="v")]:
        guard.trying("v")
        guard, blame = start(tmp_path, crashed=False)
        assert blame == expected


def test_crashes_and_kills_add_up(tmp_path: Path) -> None:
    guard, blame = start(tmp_path)
    for crashed in (True, False, False, True, False, False):
        assert blame == Blame()
        guard.trying("v")
        guard, blame = start(tmp_path, crashed=crashed)
    assert blame == Blame(refuse="v")


def test_a_healthy_while_or_a_clean_stop_is_no_death(tmp_path: Path) -> None:
    for end in (CrashGuard.healthy, CrashGuard.close):
        for _ in range(5):
            guard, blame = start(tmp_path)
            assert blame == Blame()
            guard.trying("v")
            end(guard)


def test_a_healthy_while_forgets_the_deaths_before(tmp_path: Path) -> None:
    for _ in range(2):
        start(tmp_path)[0].trying("v")
    guard, _ = start(tmp_path)
    guard.trying("v")
    guard.healthy()
    guard.trying("v")
    assert start(tmp_path)[1] == Blame()


def test_a_death_belongs_to_the_version_that_was_tried_last(tmp_path: Path) -> None:
    for _ in range(3):
        guard, _ = start(tmp_path)
        guard.trying("old")
        assert guard.trying("new") == "old"
    assert start(tmp_path)[1] == Blame(refuse="new")


def test_a_version_that_could_not_be_used_hands_back_to_the_one_that_serves(
    tmp_path: Path,
) -> None:
    for _ in range(3):
        guard, _ = start(tmp_path)
        before = guard.trying("new")
        guard.trying(before)
    assert start(tmp_path)[1] == Blame()


def test_where_the_version_before_dies_too_no_version_is_to_blame(tmp_path: Path) -> None:
    assert die(tmp_path, "new", times=3) == Blame(refuse="new")
    assert die(tmp_path, "old", times=3) == Blame(allow="new")
    for _ in range(10):
        assert die(tmp_path, "new") == Blame()
    guard, _ = start(tmp_path)
    guard.healthy()
    assert die(tmp_path, "new", times=3) == Blame(refuse="new")


def test_a_version_that_is_blamed_after_a_healthy_while_is_another_case(tmp_path: Path) -> None:
    assert die(tmp_path, "new", times=3) == Blame(refuse="new")
    guard, _ = start(tmp_path)
    guard.trying("old")
    guard.healthy()
    assert die(tmp_path, "newer", times=3) == Blame(refuse="newer")


def test_zero_deaths_count_nothing_and_write_nothing(tmp_path: Path) -> None:
    for _ in range(5):
        guard, blame = start(tmp_path, max_crashes=0)
        guard.trying("v")
        assert blame == Blame()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"open": 1, "crashes": []}', b"\xff"])
def test_a_damaged_file_counts_as_none(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert start(tmp_path)[1] == Blame()
    assert "passed over" in caplog.text


def test_a_full_disk_is_logged_and_serving_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_client.crash_guard.write_atomically", full)
    start(tmp_path)[0].trying("v")
    assert "No space left" in caplog.text
