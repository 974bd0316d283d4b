"""What the simulate-real benchmark compares, and that it runs."""

from pathlib import Path

import pytest

from benchmarks.deployment import Deployment, check_converter
from benchmarks.harness import CannotRun
from benchmarks.simulate_real import (
    DEPLOYED,
    SETTINGS,
    SIMULATED,
    RealRun,
    federation_of,
    measure,
    plan_runs,
    summarize,
)
from benchmarks.tasks.mnist_writers import FOLDER
from benchmarks.tasks.speakers import PATH
from edge_client.settings import EdgeConfig
from fedge.config import build
from fedge.tasks.digits import Digits
from server.convert import find_converter
from server.settings import ServerConfig
from tests.tiny_task import TinyTask

can_run = FOLDER.is_dir() and PATH.is_file() and find_converter() is not None


def test_each_deployment_has_a_simulation_with_the_same_settings() -> None:
    runs = plan_runs(quick=False)
    assert len({run.key for run in runs}) == len(runs)
    deployed = {(run.setting, run.seed) for run in runs if run.how == DEPLOYED}
    assert deployed == {(run.setting, run.seed) for run in runs if run.how == SIMULATED}
    assert {setting for setting, _ in deployed} == set(SETTINGS)
    assert len({seed for _, seed in deployed}) >= 3


def test_the_processes_get_the_federation_that_is_simulated(tmp_path: Path) -> None:
    federation = federation_of(RealRun("speakers", DEPLOYED, 1))
    deployment = Deployment(federation, 8, tmp_path, (4001, 4002))
    server = build(ServerConfig, deployment.server_config())
    alone = build(ServerConfig, federation)
    assert (server.train, server.seed, server.aggregation) == (
        alone.train,
        alone.seed,
        alone.aggregation,
    )
    assert (server.rounds.num_rounds, server.rounds.min_devices) == (20, 8)
    key = tmp_path / "release.key.pub"
    key.touch()
    device = build(EdgeConfig, deployment.device_config(3))
    assert device.task == server.task
    assert not device.privacy.enabled
    assert device.store.holdout_fraction == 0.0
    assert device.node.superlink == "127.0.0.1:4001"
    assert device.state_dir == tmp_path / "device-3"


def test_without_a_converter_nothing_is_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.deployment.find_converter", lambda: None)
    with pytest.raises(CannotRun, match="make convert-env"):
        check_converter(TinyTask())
    check_converter(Digits())  # ships what a device serves


def test_a_difference_is_of_the_last_rounds_means_and_its_noise_of_the_seeds() -> None:
    runs = [
        RealRun(setting, how, seed, 7)
        for setting in SETTINGS
        for seed in (0, 1)
        for how in (DEPLOYED, SIMULATED)
    ]
    found = {}
    for run in runs:
        last = 92.0 + (run.setting == "speakers") * (run.how == DEPLOYED) * (1 + run.seed)
        found[run.key] = {"by_round": [10.0, 50.0, 80.0, *[last] * 5]}
    result = summarize(runs, found)
    assert result["accuracy_deployed"] == {"mnist-writers": 92.0, "speakers": 93.5}
    assert result["accuracy_simulated"] == {"mnist-writers": 92.0, "speakers": 92.0}
    assert result["difference_points"] == 1.5
    assert result["both_reached"]
    row = result["table"]["speakers"]
    assert row["differences_by_seed"] == [1.0, 2.0]
    assert row["standard_error_points"] == pytest.approx(0.5)
    assert row["mean_absolute_difference_points"] == pytest.approx(1.5 * 5 / 7)
    assert row[DEPLOYED]["first_round_at"] == 1  # 30 points
    assert result["table"]["mnist-writers"][SIMULATED]["first_round_at"] == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not can_run, reason="the data or the TFLite converter are not there")
def test_a_quick_run_has_every_key() -> None:
    found = measure(quick=True)
    assert found["difference_points"] < 20
    assert found["accuracy_deployed"].keys() == found["accuracy_simulated"].keys() == set(SETTINGS)
