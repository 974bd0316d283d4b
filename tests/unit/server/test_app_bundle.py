"""The bundle that Flower runs: no code, the resolved configuration, no release key."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from fedge.config import load
from fedge.errors import ConfigError
from server.app_bundle import serverapp_tree, write_bundle
from server.settings import RegistryConfig, RoundsConfig, ServerConfig


def config_in(folder: Path) -> ServerConfig:
    return ServerConfig(
        run_dir=folder,
        rounds=RoundsConfig(num_rounds=7),
        registry=RegistryConfig(release_key=folder / "secret.key"),
    )


def test_the_server_app_reads_back_the_resolved_configuration(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    bundle = write_bundle(config, tmp_path / 'a "quoted" folder')
    overrides = tomllib.loads(bundle.run_config.read_text())
    path = Path(overrides["config"])
    assert path.is_absolute()
    expected = replace(config, registry=replace(config.registry, release_key=None))
    assert load(ServerConfig, path) == expected


def test_the_release_key_is_nowhere_in_what_flower_gets(tmp_path: Path) -> None:
    write_bundle(config_in(tmp_path), tmp_path / "flower")
    written = [path for path in (tmp_path / "flower").rglob("*") if path.is_file()]
    assert len(written) == 3
    assert all(b"secret.key" not in path.read_bytes() for path in written)
    assert "release_key" not in serverapp_tree(config_in(tmp_path))["registry"]


def test_flower_accepts_the_bundle_and_it_carries_no_code(tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.config_utils import load_and_validate

    bundle = write_bundle(config_in(tmp_path), tmp_path)
    config, warnings = load_and_validate(bundle.folder / "pyproject.toml")
    assert warnings == []
    declared = config["tool"]["flwr"]["app"]["config"]
    assert set(tomllib.loads(bundle.run_config.read_text())) <= set(declared)
    assert len(build_fab_from_disk(bundle.folder)) < 5_000


def test_the_components_are_those_of_the_repository() -> None:
    from server.app_bundle import CLIENT_APP, SERVER_APP

    root = Path(__file__).parents[3]
    repository = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert repository["components"] == {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}
    assert repository["config"] == {"config": "", "num-rounds": 0}


def test_a_folder_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run_dir: cannot write"):
        write_bundle(config_in(tmp_path), tmp_path / "file")
