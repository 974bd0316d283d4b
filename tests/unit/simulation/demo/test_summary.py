"""The figures a demo ends with, against figures computed by hand."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from fedge.privacy.statement import epsilon_covers
from simulation.demo.devices import DeviceReport
from simulation.demo.load import LoadSnapshot
from simulation.demo.summary import Baselines, complaints, round_overhead_s, summarize
from tests.unit.simulation.demo.figures import DEVICES, LOAD, ROUNDS, SERVER_VERSION, metrics_of

BASELINES = Baselines(accuracy_fedavg_only=0.75, accuracy_cloud_only=0.8125)


def summary_of(
    rounds: list[dict[str, Any]] = ROUNDS,
    devices: list[DeviceReport] = DEVICES,
    load: LoadSnapshot = LOAD,
) -> dict[str, Any]:
    return summarize(rounds, devices, load, BASELINES, delta=1e-5)


def test_the_summary_says_what_its_parts_say() -> None:
    summary = summary_of()
    assert summary["rounds"] == 3
    assert summary["accuracy_initial"] == 0.125
    assert summary["accuracy_final"] == 0.875
    assert summary["accuracy_fedavg_only"] == 0.75
    assert summary["accuracy_cloud_only"] == 0.8125
    outcomes = ("accepted", "rejected", "failed")
    assert [summary[f"refinements_{outcome}"] for outcome in outcomes] == [1, 1, 1]
    assert summary["devices"] == 2
    assert summary["epsilon"] == {"device-0": 7.0, "device-1": 3.5}
    assert summary["delta"] == 1e-5
    assert summary["epsilon_covers"] == epsilon_covers()
    assert (summary["predictions"], summary["predictions_failed"]) == (100, 0)
    assert summary["latency_ms"] == {"p50": 50.5, "p99": pytest.approx(99.01)}
    assert summary["model_version_server"] == SERVER_VERSION
    assert set(summary["model_version_devices"].values()) == {SERVER_VERSION}
    assert summary["round_s"] == 3.0
    assert json.loads(json.dumps(summary)) == summary


def test_failed_predictions_are_counted_whatever_failed() -> None:
    failures = {"UNAVAILABLE": 2, "INTERNAL": 1}
    summary = summary_of(load=LoadSnapshot((1.0,), failures))
    assert (summary["predictions"], summary["predictions_failed"]) == (1, 3)
    assert summary["prediction_failures"] == failures


def test_overhead_is_the_median_of_round_time_less_the_slowest_training() -> None:
    # Rounds take 2, 5 and 3 s; their slowest trainings 1.5, 4 and 1 s: 0.5, 1 and 2 s remain.
    assert round_overhead_s(ROUNDS, DEVICES) == 1.0


def test_a_round_in_which_nobody_trained_is_all_overhead() -> None:
    rounds = [ROUNDS[0], metrics_of(1, 0.5, "off", seconds=2.0)]
    assert round_overhead_s(rounds, [replace(DEVICES[0], train_seconds={})]) == 2.0


def test_a_success_has_no_complaints() -> None:
    assert complaints(summary_of(), 3) == []


def test_missing_rounds_are_complained_of() -> None:
    assert complaints(summary_of(), 10) == ["only 3 of 10 rounds committed"]


def test_failed_predictions_are_complained_of() -> None:
    summary = summary_of(load=LoadSnapshot((1.0,), {"UNAVAILABLE": 4}))
    assert complaints(summary, 3) == ["4 predictions failed"]


def test_a_demo_that_nobody_asked_anything_is_complained_of() -> None:
    summary = summary_of(load=LoadSnapshot((), {}))
    assert math.isnan(summary["latency_ms"]["p50"])
    assert complaints(summary, 3) == ["no prediction was answered"]


def test_each_device_on_another_version_is_complained_of() -> None:
    devices = [replace(DEVICES[0], model_digest="d" * 64), replace(DEVICES[1], model_digest="")]
    assert complaints(summary_of(devices=devices), 3) == [
        "device-0 serves dddddddddddd, not the server's last version",
        "device-1 does not answer",
    ]


def test_every_failure_is_said_at_once() -> None:
    devices = [DEVICES[0], replace(DEVICES[1], model_digest="d" * 64)]
    summary = summary_of(devices=devices, load=LoadSnapshot((), {"INTERNAL": 1}))
    assert len(complaints(summary, 4)) == 4
