"""What ``fedge-edge model`` shows and changes, in a folder that a daemon may be using."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_client.cli import app
from edge_client.model_store import ModelStore
from edge_client.version_choices import FILE, ChoicesFile
from fedge.cli import run_cli
from tests.unit.edge_client.published_versions import KEY, publish


@pytest.fixture
def state(tmp_path: Path) -> Path:
    store = ModelStore(tmp_path / "models", KEY.public_key())
    for round in (11, 12, 13):
        store.install(*publish(round).args)
    pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "release.key.pub").write_bytes(pem)
    return tmp_path


def model(state: Path, *arguments: str) -> object:
    sets = [f"state_dir={state}", f"registry.release_public_key={state / 'release.key.pub'}"]
    flags = [part for setting in sets for part in ("--set", setting)]
    with pytest.raises(SystemExit) as caught:
        run_cli(app, ["model", *arguments, *flags])
    return caught.value.code


def lines_of(state: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert model(state, "list") == 0
    return capsys.readouterr().out.splitlines()


def test_list_shows_the_newest_first_and_which_serves(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of(state, capsys)
    assert [line.split("round ")[1] for line in lines] == ["13 of run", "12 of run", "11 of run"]
    assert [line[0] for line in lines] == ["*", " ", " "]


@pytest.mark.parametrize("name", ["2", "12", None])
def test_pin_takes_a_number_a_round_or_the_beginning_of_an_id(
    state: Path, name: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    name = name or lines_of(state, capsys)[1].split()[1]
    assert model(state, "pin", name) == 0
    lines = lines_of(state, capsys)
    assert [line[0] for line in lines] == [" ", "*", " "]
    assert lines[1].endswith("pinned")
    assert model(state, "pin", "--off") == 0
    assert [line[0] for line in lines_of(state, capsys)] == ["*", " ", " "]


def test_rollback_leaves_version_after_version_until_none_is_left(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for serves in (1, 2):
        assert model(state, "rollback") == 0
        lines = lines_of(state, capsys)
        assert [line[0] for line in lines].index("*") == serves
        assert "refused: left by hand" in lines[serves - 1]
    assert model(state, "rollback") == 2
    assert "no other version" in capsys.readouterr().err
    assert [line[0] for line in lines_of(state, capsys)].index("*") == 2


def test_pinning_a_version_that_was_left_takes_it_back(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model(state, "rollback")
    assert model(state, "pin", "13") == 0
    assert [line[0] for line in lines_of(state, capsys)] == ["*", " ", " "]


@pytest.mark.parametrize("arguments", [("pin", "99"), ("pin", "--off", "13"), ("pin", "")])
def test_what_cannot_be_chosen_is_one_line_and_status_2(
    state: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert model(state, *arguments) == 2
    assert len([x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]) == 1


def test_a_folder_without_versions_is_named(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (state / "models").rename(state / "away")
    assert model(state, "list") == 2
    assert "no daemon has run" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"pinned": "x"}'])
def test_damaged_choices_are_none_and_are_said(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(content)
    choices = ChoicesFile(tmp_path)
    assert choices.read().refused == {}
    assert "passed over" in caplog.text
    choices.refuse("a" * 64, "why")
    assert choices.read().refused == {"a" * 64: "why"}


def test_only_the_newest_refusals_are_remembered(tmp_path: Path) -> None:
    choices = ChoicesFile(tmp_path)
    for number in range(70):
        choices.refuse(str(number), "why")
    assert list(choices.read().refused) == [str(number) for number in range(6, 70)]
    assert json.loads((tmp_path / FILE).read_bytes())["pinned"] == ""
