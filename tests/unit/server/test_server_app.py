from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.serverapp import ServerApp

from fedge.errors import ConfigError
from server import server_app


def test_the_app_is_what_pyproject_names() -> None:
    assert isinstance(server_app.app, ServerApp)


def test_without_a_configuration_the_embedded_task_is_run_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = server_app.read_run_config({"config": "", "num-rounds": 0}, run_id=17)
    assert config.run_dir == tmp_path / "runs" / "flwr-17"
    assert config.task.name == "fedge.tasks.digits:Digits"
    assert config.refine.trainer == "in-process"
    assert server_app.read_run_config({}, run_id=18).run_name != config.run_name


def test_a_configuration_is_read_and_the_number_of_rounds_may_be_overridden(
    tmp_path: Path,
) -> None:
    path = tmp_path / "server.toml"
    path.write_text('run_dir = "here"\n[rounds]\nnum_rounds = 4\nquorum = 0.9\n')
    plain = server_app.read_run_config({"config": str(path)}, run_id=1)
    assert plain.run_dir == tmp_path / "here"
    assert plain.rounds.num_rounds == 4
    other = server_app.read_run_config({"config": str(path), "num-rounds": 9}, run_id=1)
    assert (other.rounds.num_rounds, other.rounds.quorum) == (9, 0.9)


@pytest.mark.parametrize(
    ("run_config", "key"),
    [
        ({"config": "server.toml"}, "config"),
        ({"config": 3}, "config"),
        ({"num-rounds": -1}, "num-rounds"),
        ({"num-rounds": "many"}, "num-rounds"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(run_config: dict[str, str | int], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        server_app.read_run_config(run_config, run_id=1)  # type: ignore[arg-type]
    assert caught.value.key == key


def test_the_app_ends_with_whoever_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(server_app, "die_with_parent", lambda: asked.append("die"))
    monkeypatch.setattr(server_app, "quicken_grid", lambda: asked.append("run"))
    context = SimpleNamespace(run_config={"num-rounds": -1}, run_id=1)
    with pytest.raises(ConfigError, match="num-rounds"):
        server_app.main(SimpleNamespace(), context)  # type: ignore[arg-type]
    assert asked == ["die", "run"]
