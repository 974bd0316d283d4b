import json
from pathlib import Path

import pytest

from edge_client.inference import Serving
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService, serve
from edge_client.settings import EdgeConfig, InferenceConfig, RegistryClientConfig, StoreConfig
from edge_client.status_report import show_status
from tests.unit.edge_client.engines import make_engine

WELL = DeviceStatus(
    connected=True,
    epsilon=2.5,
    delta=1e-5,
    figures={"privacy_epsilon_left": 5.5, "x_bytes": 2e6, "odd": float("nan")},
)


def show(folder: Path, status: DeviceStatus, *, as_json: bool = False, engine: bool = True) -> int:
    """Serve a status and show it."""
    config = EdgeConfig(state_dir=folder, registry=RegistryClientConfig(address=""))
    serving = Serving(make_engine(7) if engine else None)
    with SampleDatabase(config.samples_path, StoreConfig()) as samples:
        service = InferenceService(serving, samples, lambda: status)
        server = serve(service, config.socket_path, InferenceConfig())
        try:
            return show_status(config, as_json=as_json)
        finally:
            server.stop(0).wait()


def test_a_table_says_how_a_healthy_device_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(tmp_path, WELL) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    told = {name.strip(): value.strip() for name, value in rows.items()}
    assert told["healthy"] == "yes"
    assert told["problem"] == "none"
    assert told["model"].startswith("round 7, ")
    assert told["privacy"] == "ε 2.500 of 8 spent at δ = 1e-05"
    assert told["SuperLink"] == "connected"
    assert told["x_bytes"] == "2,000,000"


def test_json_has_every_field_and_is_strict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(tmp_path, WELL, as_json=True) == 0

    def refuse(name: str) -> float:
        raise AssertionError(name)

    told = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert told["model"]["round"] == 7
    assert told["predictions"] == 0
    assert told["figures"] == {"privacy_epsilon_left": 5.5, "x_bytes": 2e6, "odd": None}


@pytest.mark.parametrize(
    ("status", "engine"),
    [
        (DeviceStatus(problem="privacy budget"), True),
        (DeviceStatus(healthy=False), True),
        (DeviceStatus(), False),
    ],
)
def test_what_needs_a_person_is_status_1(
    tmp_path: Path, status: DeviceStatus, engine: bool
) -> None:
    assert show(tmp_path, status, engine=engine) == 1


def test_no_daemon_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = EdgeConfig(state_dir=tmp_path, registry=RegistryClientConfig(address=""))
    assert show_status(config, as_json=False) == 1
    assert "not running, or not answering" in capsys.readouterr().out
    assert show_status(config, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] is False
    assert "cannot be reached" in told["problem"]
