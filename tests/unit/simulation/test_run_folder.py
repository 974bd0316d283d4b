"""A run that goes on says what it is given otherwise than when it began."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from simulation.run_folder import differences, open_run
from simulation.settings import SimulateConfig
from tests.unit.simulation.engine.engine_runs import configure, run


def begun(folder: Path) -> SimulateConfig:
    """Return the configuration of a run that has committed a round."""
    config = configure(folder, rounds={"num_rounds": 1}, evaluate={"every_rounds": 0})
    run(config)
    return config


def test_a_run_goes_on_with_its_own_seed_and_tells_of_other_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = begun(tmp_path)
    server = replace(config.server, seed=config.server.seed + 1)
    with caplog.at_level(logging.WARNING):
        resumed = open_run(replace(config, server=server, num_clients=config.num_clients - 1))
    assert resumed.server.seed == config.server.seed
    assert f"the run began with {config.server.seed}" in caplog.text
    assert "num_clients = 39, its rounds so far had 40" in caplog.text


def test_rounds_more_and_another_engine_are_no_difference(tmp_path: Path) -> None:
    config = begun(tmp_path)
    rounds = replace(config.server.rounds, num_rounds=9)
    engine = replace(config.engine, workers=3, backend="sequential")
    now = replace(config, server=replace(config.server, rounds=rounds), engine=engine)
    assert list(differences(tmp_path, now)) == []


def test_a_folder_without_a_configuration_differs_in_nothing(tmp_path: Path) -> None:
    assert list(differences(tmp_path, configure(tmp_path))) == []
