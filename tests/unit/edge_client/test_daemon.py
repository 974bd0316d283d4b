import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_client.device_id import load_device_id
from edge_client.learning import Learning
from edge_client.participant import TrainedRound
from edge_client.release_public_key import load_release_key
from edge_client.settings import EdgeConfig, RegistryClientConfig
from edge_client.state_folder import StateFolder
from fedge.durable import write_atomically
from fedge.errors import ConfigError


def test_rounds_are_noted_as_json_lines(tmp_path: Path) -> None:
    config = EdgeConfig(state_dir=tmp_path, registry=RegistryClientConfig(address=""))
    learning = Learning(config, StateFolder(tmp_path))
    learning.note_round(TrainedRound("run", 3, 0.5, 12, 1.25, 1.7e9))
    [line] = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "run": "run",
        "round": 3,
        "train_seconds": 0.5,
        "num_steps": 12,
        "epsilon": 1.25,
        "finished_at": 1.7e9,
    }


def test_what_a_full_disk_does_not_take_costs_no_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = EdgeConfig(state_dir=tmp_path, registry=RegistryClientConfig(address=""))
    learning = Learning(config, StateFolder(tmp_path))
    with monkeypatch.context() as full:
        full.setattr("edge_client.device_id.write_atomically", fail)
        full.setattr(Path, "mkdir", fail)
        assert len(load_device_id(tmp_path)) == 32
        assert learning.open_replies() is None
    assert "No space left" in learning.problem
    kept = load_device_id(tmp_path)
    assert load_device_id(tmp_path) == kept


def test_a_folder_is_used_by_one_daemon_at_a_time(tmp_path: Path) -> None:
    with (
        StateFolder(tmp_path / "state"),
        pytest.raises(ConfigError, match="in use by another daemon"),
        StateFolder(tmp_path / "state"),
    ):
        pass
    with StateFolder(tmp_path / "state") as folder:
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_what_a_killed_daemon_was_writing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "replies").mkdir()
    path = tmp_path / "replies" / "run.reply"
    write_atomically(path, b"whole")

    def kill(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", kill)
        with pytest.raises(SystemExit):
            write_atomically(path, b"new")
    [ours] = set(path.parent.iterdir()) - {path}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    of_one_gone = path.with_name(f".run.reply.{gone.pid}-1.tmp")
    of_another = path.with_name(f".run.reply.{os.getppid()}-1.tmp")
    for each in (of_one_gone, of_another):
        each.write_bytes(b"ne")
    assert ours.exists()
    with StateFolder(tmp_path):
        assert set(path.parent.iterdir()) == {path, of_another}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state_dir: cannot use"), StateFolder(tmp_path / "file"):
        pass


def test_the_release_key_is_read_from_pem(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    path = tmp_path / "release.key.pub"
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert load_release_key(path) == key
    assert load_release_key(None) is None


def test_another_kind_of_key_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "ec.pub"
    key = generate_private_key(SECP256R1()).public_key()
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        load_release_key(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="not a public key in PEM"):
        load_release_key(path)


def test_importing_the_daemon_brings_neither_torch_nor_flower() -> None:
    code = (
        "import edge_client.daemon, sys;"
        "found = [m for m in ('torch', 'flwr', 'scipy', 'sklearn') if m in sys.modules];"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
