import errno
from pathlib import Path

import pytest

from edge_client import state_version
from edge_client.state_folder import StateFolder
from edge_client.state_version import MIGRATIONS, bring_up_to_date
from fedge.errors import ConfigError


def rename_log(folder: Path) -> None:
    if (folder / "old.log").exists():
        (folder / "old.log").rename(folder / "new.log")


def add_line(folder: Path) -> None:
    (folder / "new.log").write_text((folder / "new.log").read_text() + "line\n")


def version_of(folder: Path) -> str:
    return (folder / "state_version").read_text()


def test_a_new_folder_gets_the_newest_version_and_no_migration(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise AssertionError(folder)

    with StateFolder(tmp_path / "state", [fail, fail, fail]):
        assert version_of(tmp_path / "state") == "3\n"


def test_a_folder_without_version_is_taken_over_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "samples.db").write_bytes(b"data")
    with StateFolder(tmp_path):
        assert version_of(tmp_path) == f"{len(MIGRATIONS)}\n"
    assert (tmp_path / "samples.db").read_bytes() == b"data"


def test_an_older_folder_is_migrated_once_from_its_version_on(tmp_path: Path) -> None:
    (tmp_path / "old.log").write_text("")
    (tmp_path / "state_version").write_text("1\n")

    def fail(folder: Path) -> None:
        raise AssertionError(folder)

    for _ in range(2):
        with StateFolder(tmp_path, [fail, rename_log, add_line]):
            assert version_of(tmp_path) == "3\n"
    assert (tmp_path / "new.log").read_text() == "line\n"


def test_a_migration_that_was_interrupted_runs_again_and_those_before_it_do_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "old.log").write_text("")
    calls = []

    def break_once(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt

    steps = [rename_log, add_line, break_once]
    with pytest.raises(KeyboardInterrupt), StateFolder(tmp_path, steps):
        pass
    assert version_of(tmp_path) == "2\n"
    with StateFolder(tmp_path, steps):  # the lock was let go
        assert version_of(tmp_path) == "3\n"
    assert (tmp_path / "new.log").read_text() == "line\n"
    assert len(calls) == 2


def test_a_version_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "samples.db").write_bytes(b"data")
    monkeypatch.setattr(state_version, "write_atomically", fail)
    with StateFolder(tmp_path):
        assert not (tmp_path / "state_version").exists()
    assert "state_version cannot be written: Read-only file system" in caplog.text


def test_a_folder_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "state_version").write_text("7\n")
    with pytest.raises(ConfigError, match=r"state_dir: .* version 7, this release knows 1"):
        bring_up_to_date(tmp_path)
    assert version_of(tmp_path) == "7\n"


@pytest.mark.parametrize("content", [b"", b"one", b"-1", b"1.5", b"\xff\xfe"])
def test_a_note_that_is_no_version_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state_version").write_bytes(content)
    with pytest.raises(ConfigError, match="does not hold a version"):
        bring_up_to_date(tmp_path)


def test_a_migration_that_fails_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be brought up to date: .*new\.log"):
        bring_up_to_date(tmp_path, [add_line])
