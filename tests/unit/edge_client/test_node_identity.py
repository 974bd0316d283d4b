import stat
from pathlib import Path

import pytest

from edge_client.node_identity import KEY_FILE, PUBLIC_KEY_FILE, SessionFile, load_identity
from fedge.errors import ConfigError


def test_a_device_is_the_same_node_after_a_restart(tmp_path: Path) -> None:
    assert load_identity(tmp_path).public_pem == load_identity(tmp_path).public_pem


def test_only_the_owner_can_read_the_private_key(tmp_path: Path) -> None:
    identity = load_identity(tmp_path)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert (tmp_path / PUBLIC_KEY_FILE).read_bytes() == identity.public_pem
    assert b"PRIVATE" not in (tmp_path / PUBLIC_KEY_FILE).read_bytes()


def test_a_damaged_key_is_named_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_bytes(b"half a ke")
    with pytest.raises(ConfigError, match=r"node\.key.*become another node"):
        load_identity(tmp_path)
    assert (tmp_path / KEY_FILE).read_bytes() == b"half a ke"


def test_an_open_session_is_remembered_until_it_is_closed(tmp_path: Path) -> None:
    session = SessionFile(tmp_path)
    assert session.read() is None
    session.write(2**63 + 5)
    assert SessionFile(tmp_path).read() == 2**63 + 5
    session.clear()
    session.clear()
    assert session.read() is None
