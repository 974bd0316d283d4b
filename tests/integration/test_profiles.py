"""The two device profiles, each with what it has and without what it has not (`make profiles`)."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_client.tensors import make_tensor, read_tensor
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc
from tests.unit.edge_client.engines import answer
from tests.unit.edge_client.fake_registry import KEY, PATCHER, Registry, make_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0
TESTS_S = 800.0
INPUTS = np.random.default_rng(5).random(64, np.float32)
WITHOUT_TORCH = (
    *(
        f"tests/unit/fedge/tflite/test_{name}.py"
        for name in ("patch", "plan", "runner", "selftest")
    ),
    *(
        f"tests/unit/edge_client/test_{name}.py"
        for name in (
            *("batching", "database", "inference", "model_store", "profile", "registry_client"),
            *("sample_store", "service", "service_over_tcp", "service_overload", "tensors"),
        )
    ),
)
ALL_OF_A_DEVICE = (
    *("tests/unit/edge_client", "tests/unit/fedge/tflite", "tests/unit/fedge/privacy"),
    "tests/integration/test_daemon.py",
)


def python_of(profile: str) -> str:
    """Return the interpreter of a profile's environment; skip where it is not made."""
    python = ROOT / f".venv-{profile}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment {python.parent.parent.name}: run make profiles")
    return str(python)


def run(python: str, *arguments: str, within_s: float = 60) -> subprocess.CompletedProcess[str]:
    unwanted = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in unwanted}
    return subprocess.run(
        [python, *arguments],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


class InferDevice:
    """A `fedge-edge` of the infer profile."""

    def __init__(self, python: str, folder: Path, registry: Registry) -> None:
        self.state = folder / "state"
        self._log = folder / "device.log"
        self._python = python
        self._key = folder / "release.key.pub"
        public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._key.write_bytes(public)
        self._registry = registry
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self, **settings: str) -> None:
        keys = {
            "state_dir": str(self.state),
            "registry.address": f"127.0.0.1:{self._registry.port}",
            "registry.release_public_key": str(self._key),
            "node.superlink": "",
            "store.holdout_fraction": "0.0",
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, "-m", "edge_client", *sets],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self.status, "the device answers")

    def stub(self) -> inference_pb2_grpc.InferenceStub:
        self.channel = client_channel(f"unix:{self.state / 'inference.sock'}", TlsConfig())
        return inference_pb2_grpc.InferenceStub(self.channel)

    def status(self) -> inference_pb2.StatusResponse | None:
        stub = self.stub()
        with self.channel:
            try:
                return stub.Status(inference_pb2.StatusRequest(), timeout=5)
            except grpc.RpcError:
                return None

    def served_round(self) -> int:
        status = self.status()
        return -1 if status is None else status.model.round

    def predict(self, sample_id: str = "") -> inference_pb2.PredictResponse:
        request = inference_pb2.PredictRequest(input=make_tensor(INPUTS), sample_id=sample_id)
        stub = self.stub()
        with self.channel:
            return stub.Predict(request, timeout=10)

    def label(self, sample_id: str, label: int) -> None:
        request = inference_pb2.LabelRequest(sample_id=sample_id, label=make_tensor(label))
        stub = self.stub()
        with self.channel:
            stub.Label(request, timeout=10)

    def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(20)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    registry.start()
    yield registry
    registry.kill()


@pytest.fixture
def infer_device(tmp_path: Path, registry: Registry) -> Iterator[InferDevice]:
    device = InferDevice(python_of("infer"), tmp_path, registry)
    yield device
    device.kill()


def test_infer_has_tflite_runtime_and_numpy_1_and_nothing_to_train_with() -> None:
    code = (
        "import importlib.metadata as m, importlib.util as u, numpy;"
        "assert m.version('tflite-runtime').startswith('2.14'), m.version('tflite-runtime');"
        "assert numpy.__version__.startswith('1.'), numpy.__version__;"
        "found = [n for n in ('torch', 'flwr', 'opacus', 'ai_edge_litert') if u.find_spec(n)];"
        "assert not found, found"
    )
    done = run(python_of("infer"), "-c", code)
    assert done.returncode == 0, done.stderr


def test_edge_has_litert_torch_and_opacus() -> None:
    code = (
        "import importlib.util as u, torch, opacus, flwr, ai_edge_litert;"
        "assert not u.find_spec('tflite_runtime')"
    )
    done = run(python_of("edge"), "-c", code)
    assert done.returncode == 0, done.stderr


def test_without_torch_a_device_serves_stores_samples_and_takes_versions(
    infer_device: InferDevice, registry: Registry
) -> None:
    infer_device.start()
    assert infer_device.predict("a").model.round == 0
    infer_device.label("a", 3)
    registry.publish(make_version(registry, 4))
    wait_until(lambda: infer_device.served_round() == 4, "round 4 is served")
    weights = np.random.default_rng(4).normal(0, 0.1, PATCHER.plan.layout.size)
    expected = answer(weights.astype(np.float32), INPUTS)
    response = infer_device.predict()
    np.testing.assert_allclose(read_tensor(response.output, "output"), expected, atol=1e-4)
    status = infer_device.status()
    assert status is not None
    assert (status.samples_labelled, status.samples_unlabelled, status.problem) == (1, 0, "")
    assert infer_device.stop() == 0

    registry.kill()
    infer_device.start()
    assert infer_device.served_round() == 4
    status = infer_device.status()
    assert status is not None
    assert status.samples_labelled == 1
    assert infer_device.stop() == 0
    assert "Traceback" not in infer_device.log


def test_without_torch_a_device_that_was_to_train_predicts_and_says_why_not(
    infer_device: InferDevice,
) -> None:
    infer_device.start(node__superlink="127.0.0.1:1")
    assert infer_device.predict().model.round == 0
    status = infer_device.status()
    assert status is not None
    assert "cannot train: torch and flwr not installed" in status.problem
    assert infer_device.stop() == 0


def test_without_torch_a_task_that_needs_it_is_served_from_files_or_from_the_registry(
    infer_device: InferDevice, registry: Registry
) -> None:
    files = ROOT / "fedge" / "tasks" / "digits_edge"
    named = {"inference__template": "template.tflite", "inference__plan": "plan.json"}
    needs_torch = {"task__name": "benchmarks.tasks.lenet:MnistLenet"}
    infer_device.start(**needs_torch, **{key: str(files / name) for key, name in named.items()})
    assert infer_device.predict().model.round == 0
    assert infer_device.stop() == 0

    infer_device.start(**needs_torch)
    assert infer_device.served_round() == 0  # no model yet
    assert "inference.template and inference.plan" in infer_device.log
    registry.publish(make_version(registry, 2))
    wait_until(lambda: infer_device.served_round() == 2, "round 2 is served")
    assert infer_device.predict().model.round == 2
    assert infer_device.stop() == 0


def test_without_torch_a_configuration_can_be_checked(tmp_path: Path) -> None:
    sets = ("--set", f"state_dir={tmp_path / 'state'}", "--set", "registry.address=", "--check")
    done = run(python_of("infer"), "-m", "edge_client", *sets)
    assert done.returncode == 0, done.stderr
    assert "configuration is fine" in done.stdout
    assert "not training" in done.stdout


@pytest.mark.parametrize(
    ("profile", "tests"), [("infer", WITHOUT_TORCH), ("edge", ALL_OF_A_DEVICE)]
)
def test_the_tests_of_what_a_profile_runs_pass_in_it(profile: str, tests: tuple[str, ...]) -> None:
    pytest_options = ("-q", "-p", "no:cacheprovider", "-m", "not convert")
    done = run(python_of(profile), "-m", "pytest", *pytest_options, *tests, within_s=TESTS_S)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
