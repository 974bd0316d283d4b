import threading
from pathlib import Path
from typing import Any

import pytest

from edge_client.inference import Serving
from edge_client.operation import Operation
from edge_client.pulse import Pulse
from edge_client.sample_store import SampleDatabase
from edge_client.self_check import SelfCheck
from edge_client.service import DeviceStatus, InferenceService, serve
from edge_client.settings import InferenceConfig, StoreConfig
from edge_client.watchdog import Watchdog
from fedge.service_manager import ServiceManager
from tests.edge_process import NotifySocket, wait_until
from tests.unit.edge_client.engines import make_engine, make_inputs


class Device:
    """A served engine, its self-check, and a clock."""

    def __init__(self, folder: Path, serving: Serving) -> None:
        self.now = 0.0
        self.serving = serving
        self.pulses = {"node": Pulse(lambda: self.now)}
        self.samples = SampleDatabase(folder / "samples.db", StoreConfig())
        service = InferenceService(serving, self.samples, DeviceStatus)
        socket = folder / "edge.sock"
        self.server = serve(service, socket, InferenceConfig())
        self.check = SelfCheck(serving, socket, self.pulses, lambda: self.now)

    def close(self) -> None:
        self.server.stop(0).wait()
        self.samples.close()


@pytest.fixture
def device(tmp_path: Path) -> Any:
    device = Device(tmp_path, Serving(make_engine(1)))
    yield device
    device.close()


def test_a_device_that_answers_is_well_and_its_checks_are_not_counted(device: Device) -> None:
    assert "no self-check has passed yet" in device.check.problem(30)
    assert device.check.run() == ""
    assert device.check.problem(30) == ""
    assert device.check.snapshot() == {"healthy": 1.0, "self_check_age_seconds": 0.0}
    assert (device.serving.num_predictions, device.serving.num_failures) == (0, 0)


def test_a_device_that_waits_for_its_first_model_is_well(tmp_path: Path) -> None:
    device = Device(tmp_path, Serving(None))
    assert device.check.run() == ""
    device.close()


def test_a_service_that_is_gone_is_noticed(device: Device) -> None:
    device.server.stop(0).wait()
    assert "does not answer (UNAVAILABLE)" in device.check.run()
    assert device.check.snapshot()["healthy"] == 0.0


def test_a_loop_that_does_not_come_back_is_named(device: Device) -> None:
    device.pulses["node"].beat(600)
    assert device.check.run() == ""
    device.now = 607.0
    assert device.check.run() == "the node loop should have been back 7 s ago"
    device.pulses["node"].beat(600)
    assert device.check.run() == ""


def test_a_check_that_hangs_shows_by_its_age(device: Device) -> None:
    device.check.run()
    device.now = 31.0
    assert device.check.problem(30) == ("no self-check has passed for 31 s: predictions may hang")


def test_an_engine_that_hangs_keeps_the_check_from_passing(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    may_answer = threading.Event()
    engine = make_engine(2)
    monkeypatch.setattr(type(engine), "predict", lambda *_: may_answer.wait(60))
    device.serving.swap(engine)
    systemd = NotifySocket(tmp_path / "notify")
    watchdog = Watchdog(device.check, ServiceManager(str(systemd.path), 0.3), lambda: "fine")
    watchdog.start()
    try:
        assert systemd.drain() == []
        may_answer.set()
        wait_until(lambda: systemd.count("WATCHDOG") >= 2, "signs of life")
        assert [name for name, _ in systemd.received][:3] == ["READY", "WATCHDOG", "STATUS"]
        may_answer.clear()
    finally:
        may_answer.set()
        watchdog.stop()
        systemd.close()


def test_what_is_wrong_is_told_and_is_no_sign_of_life(device: Device, tmp_path: Path) -> None:
    device.server.stop(0).wait()
    systemd = NotifySocket(tmp_path / "notify")
    watchdog = Watchdog(device.check, ServiceManager(str(systemd.path), 0.3), lambda: "fine")
    watchdog.start()
    wait_until(lambda: systemd.count("STATUS"), "a status")
    watchdog.stop()
    assert {name for name, _ in systemd.drain()} == {"STATUS"}
    assert "does not answer" in systemd.received[0][1]
    systemd.close()


def test_serving_counts_predictions_failures_and_swaps() -> None:
    serving = Serving(make_engine(3))
    serving.predict(make_inputs(1)[0])
    assert serving.probe()
    serving.swap(make_engine(4))
    assert serving.snapshot() == {
        "predictions_total": 1,
        "prediction_failures_total": 0,
        "model_swaps_total": 1,
        "model_round": 4,
    }
    assert not Serving(None).probe()


def test_a_device_is_not_healthy_before_its_first_check() -> None:
    assert Operation(ServiceManager()).health == "no self-check has passed yet"
