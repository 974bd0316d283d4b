"""What the demo gives its devices, and what it learns of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_client.inference import Serving
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService, serve
from edge_client.settings import EdgeConfig
from fedge.config import build
from fedge.tasks.digits import Digits
from simulation.demo.devices import device_version, fill_stores, report_device
from simulation.demo.plan import DemoOptions, DemoPlan, make_plan
from tests.unit.edge_client.engines import make_engine


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[DemoPlan]:
    made = make_plan(DemoOptions(name="t", runs=tmp_path, num_devices=3))
    made.write()
    yield made
    made.sockets.rmdir()


def rows(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return examples as sorted rows, so that order does not count."""
    together = np.column_stack([inputs, targets])
    ordered: np.ndarray = together[np.lexsort(together.T)]
    return ordered


def test_each_device_stores_its_share_and_no_other(plan: DemoPlan) -> None:
    task = Digits(seed=0)
    fill_stores(plan, task)
    stored = 0
    for device in range(3):
        config = build(EdgeConfig, plan.device_config(device))
        with SampleDatabase(config.samples_path, config.store) as samples:
            assert samples.counts() == (len(task.client_data(device, 3)), 0)
            train, holdout = samples.labelled("train"), samples.labelled("holdout")
        stored += len(train) + len(holdout)
        share = task.client_data(device, 3)
        inputs = np.concatenate([train.inputs, holdout.inputs])
        targets = np.concatenate([train.targets, holdout.targets])
        np.testing.assert_array_equal(rows(inputs, targets), rows(share.inputs, share.targets))
        assert len(holdout) > 0
    cloud = task.cloud_data()
    assert stored + len(cloud.proxy) + len(cloud.gate) + len(cloud.test) == 1797


def test_a_device_reports_its_version_its_privacy_and_its_training_times(
    plan: DemoPlan, tmp_path: Path
) -> None:
    config = build(EdgeConfig, plan.device_config(1))
    lines = [{"round": 1, "train_seconds": 0.5}, {"round": 3, "train_seconds": 0.25}]
    log = plan.device_dir(1) / "rounds.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"round": 4, "tra')
    engine = make_engine(2)
    with SampleDatabase(tmp_path / "samples.db", config.store) as samples:
        status = DeviceStatus(connected=True, epsilon=1.5, delta=1e-5)
        service = InferenceService(Serving(engine), samples, lambda: status)
        server = serve(service, plan.device_socket(1), config.inference)
        try:
            assert device_version(plan, 1) == engine.version.digest
            report = report_device(plan, 1)
        finally:
            server.stop(0).wait()
    assert (report.name, report.model_digest) == ("device-1", engine.version.digest)
    assert report.epsilon == 1.5
    assert report.train_seconds == {1: 0.5, 3: 0.25}


def test_a_device_that_does_not_answer_has_no_version_and_no_epsilon(plan: DemoPlan) -> None:
    assert device_version(plan, 0) == ""
    report = report_device(plan, 0)
    assert report.model_digest == ""
    assert report.epsilon is None
    assert report.train_seconds == {}
