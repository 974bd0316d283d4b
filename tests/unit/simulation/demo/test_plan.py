"""What a demo consists of, before anything is started."""

import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client.settings import EdgeConfig
from fedge.config import load
from fedge.errors import ConfigError
from fedge.settings import PrivacyConfig
from server.release_key import load_or_create_release_key
from server.settings import ServerConfig
from server.trainer.settings import TrainerConfig
from simulation.demo.plan import DemoOptions, DemoPlan, free_ports, make_plan, simulation_config

MAX_SOCKET_PATH = 107  # bytes of sun_path on Linux, less the closing zero


def make_options(runs: Path) -> DemoOptions:
    return DemoOptions(
        name="t",
        runs=runs,
        num_devices=3,
        num_rounds=7,
        seed=11,
        privacy=PrivacyConfig(epsilon=2.5, declared_examples=64),
    )


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[DemoPlan]:
    made = make_plan(make_options(tmp_path))
    yield made
    made.sockets.rmdir()


def test_every_file_written_is_accepted_by_its_role_and_they_find_each_other(
    plan: DemoPlan,
) -> None:
    plan.write()
    load_or_create_release_key(plan.release_key)
    server = load(ServerConfig, plan.config_path("server"))
    trainer = load(TrainerConfig, plan.config_path("trainer"))
    devices = [load(EdgeConfig, plan.config_path(plan.device_name(each))) for each in range(3)]
    assert server.refine.trainer == trainer.address
    assert server.run_dir == plan.server_dir
    assert (server.rounds.num_rounds, server.rounds.min_devices, server.seed) == (7, 3, 11)
    assert server.registry.release_key is not None
    for number, device in enumerate(devices):
        assert device.node.superlink == f"127.0.0.1:{server.superlink.port}"
        assert device.registry.address == server.registry.address
        assert device.registry.release_public_key is not None
        assert device.registry.release_public_key.is_file()
        assert device.task == server.task == trainer.task
        assert device.privacy == PrivacyConfig(epsilon=2.5, declared_examples=64)
        assert device.socket_path == plan.device_socket(number)
        assert device.state_dir.is_dir()
    assert len({device.state_dir for device in devices}) == 3
    assert server.task.options == {"seed": 11}


def test_configuration_files_are_all_there_is_in_their_folder(plan: DemoPlan) -> None:
    plan.write()
    files = {path.name for path in (plan.folder / "config").iterdir()}
    assert files == {"server.toml", "trainer.toml", *(f"device-{each}.toml" for each in range(3))}
    assert all(tomllib.loads(plan.config_path(Path(name).stem).read_text()) for name in files)
    assert plan.log_path("server").parent.is_dir()


def test_ports_are_free_and_distinct(plan: DemoPlan) -> None:
    assert len(set(plan.ports)) == 3
    for port in plan.ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_port_in_use_is_not_offered() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = free_ports(50)
        assert taken.getsockname()[1] not in ports
    assert len(set(ports)) == 50


def test_socket_paths_stay_short_however_long_the_run_folder(tmp_path: Path) -> None:
    runs = tmp_path / ("a" * 100) / ("b" * 100)
    plan = make_plan(DemoOptions(name="long", runs=runs, num_devices=32))
    paths = [plan.device_socket(device) for device in range(32)]
    assert len(set(paths)) == 32
    assert max(len(str(path).encode()) for path in paths) <= MAX_SOCKET_PATH
    plan.sockets.rmdir()


def test_an_existing_run_is_refused_and_keeps_what_it_holds(tmp_path: Path) -> None:
    options = make_options(tmp_path)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"t exists already; choose another --name"):
        make_plan(options)
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["summary.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make .*file/t: Not a directory"):
        make_plan(make_options(tmp_path / "file"))


def test_the_simulation_is_the_same_federation(plan: DemoPlan, tmp_path: Path) -> None:
    plan.write()
    deployed = load(ServerConfig, plan.config_path("server"))
    both, devices_only = (
        simulation_config(plan.options, tmp_path / "simulated", refine=refine)
        for refine in (True, False)
    )
    assert (both.server.refine.trainer, devices_only.server.refine.trainer) == ("in-process", "")
    for simulated in (both, devices_only):
        assert simulated.num_clients == 3
        assert simulated.privacy == plan.options.privacy
        for section in ("run_name", "seed", "task", "rounds", "train", "aggregation", "evaluate"):
            assert getattr(simulated.server, section) == getattr(deployed, section)
    assert both.server.run_dir == tmp_path / "simulated"
