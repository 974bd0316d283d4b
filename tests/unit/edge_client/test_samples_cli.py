from pathlib import Path

import numpy as np
import pytest

from edge_client.cli import app
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig
from fedge.cli import run_cli


def run(folder: Path, *arguments: str) -> int:
    # A release key is wanted for the default registry; these commands speak to none.
    options = ["--set", f'state_dir="{folder}"', "--set", 'registry.address=""']
    with pytest.raises(SystemExit) as ended:
        run_cli(app, ["samples", *arguments, *options])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with SampleDatabase(tmp_path / "samples.db", StoreConfig()) as samples:
        samples.add("a", np.ones(3), 1, source="topic", sequence=4)
        samples.add("b", np.ones(3), source="topic", sequence=6)
        samples.add("b", np.ones(3), source="topic", sequence=6)
        samples.label("not yet", 1, wait=True)
    return tmp_path


def test_count_tells_what_is_stored_and_what_came(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "count") == 0
    lines = capsys.readouterr().out.splitlines()
    figures = {line.rsplit(maxsplit=1)[0]: line.rsplit(maxsplit=1)[1] for line in lines[:-1]}
    assert figures == {
        "labelled": "1",
        "unlabelled": "1",
        "bytes": "290",
        "waiting labels": "1",
        "ever labelled": "1",
        "duplicates": "1",
    }
    assert lines[-1] == "source 'topic': received 2, missing 1, duplicates 1"


def test_export_writes_a_file_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder / "out.npz"
    assert run(folder, "export", "--to", str(target)) == 0
    assert capsys.readouterr().out == f"2 samples are in {target}\n"
    with np.load(target) as found:
        assert found["targets"].tolist() == [1]


def test_a_device_that_never_ran_has_nothing_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "count") == 2
    assert "the daemon makes it when it starts" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
