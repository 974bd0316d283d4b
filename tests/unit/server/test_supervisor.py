"""What the supervisor checks before anything starts; its processes: tests/integration."""

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from fedge.folder_lock import locked
from fedge.settings import TaskConfig
from server.settings import RegistryConfig, ServerConfig, SuperLinkConfig
from server.supervisor import Supervisor


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def config_in(folder: Path) -> ServerConfig:
    return ServerConfig(
        run_dir=folder,
        superlink=SuperLinkConfig(port=free_port()),
        registry=RegistryConfig(address=f"127.0.0.1:{free_port()}"),
    )


def run(config: ServerConfig) -> int:
    return Supervisor(config, stop=threading.Event(), exit_when_done=True).run()


def test_a_folder_is_one_supervisors_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path, "fedge-server", key="run_dir"),
        pytest.raises(ConfigError, match=r"run_dir: .* another fedge-server"),
    ):
        run(config_in(tmp_path))


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run_dir: cannot use"):
        run(config_in(tmp_path / "file" / "run"))


def test_a_taken_superlink_port_stops_everything_before_it_starts(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", config.superlink.port))
        other.listen()
        with pytest.raises(ConfigError, match=r"superlink\.port: cannot use port .*choose another"):
            run(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_a_taken_registry_address_stops_before_flower_is_started(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(config.registry.address.rpartition(":")[2])))
        other.listen()
        with pytest.raises(ConfigError, match=r"registry\.address: cannot serve on"):
            run(config)
    assert not (tmp_path / "superlink.log").exists()


def test_a_task_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    config = replace(config_in(tmp_path), task=TaskConfig(name="no.such:Task"))
    with pytest.raises(ConfigError, match=r"task\.name"):
        run(config)
