import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.inference import Engine, Serving
from edge_client.model_store import ModelStore
from edge_client.registry_client import RegistryClient
from edge_client.rollout import Rollout
from edge_client.settings import ModelsConfig, RegistryClientConfig
from fedge.backoff import Backoff
from fedge.errors import ModelError
from fedge.manifest import ModelManifest
from fedge.protocol import PROTOCOL_VERSION
from tests.unit.edge_client.fake_registry import KEY, Registry, make_version

DEADLINE_S = 20.0


class Device:
    """A device's store and serving, kept up to date by the client under test."""

    def __init__(self, folder: Path, port: int) -> None:
        key_file = folder / "release.key.pub"
        key_file.write_bytes(
            KEY.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        self.store = ModelStore(folder / "models", KEY.public_key(), keep_versions=3)
        self.serving = Serving()
        config = RegistryClientConfig(address=f"127.0.0.1:{port}", release_public_key=key_file)
        self.rollout = Rollout(self.store, self.serving, ModelsConfig())
        self.client = RegistryClient(
            config, self.rollout, device="test", node="node", backoff=Backoff(0.05, 0.2)
        )

    def wait_for_round(self, round: int) -> None:
        wait_until(lambda: round_of(self.serving) == round)


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    registry.start()
    yield registry
    registry.kill()


@pytest.fixture
def device(tmp_path: Path, registry: Registry) -> Iterator[Device]:
    device = Device(tmp_path, registry.port)
    yield device
    device.client.stop()


def is_running() -> bool:
    return any(thread.name == "registry-client" for thread in threading.enumerate())


def round_of(serving: Serving) -> int | None:
    try:
        return serving.version.round
    except ModelError:
        return None


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_the_first_version_is_fetched_and_served(registry: Registry, device: Device) -> None:
    manifest = make_version(registry, 1)
    registry.publish(manifest)
    device.client.start()
    device.wait_for_round(1)
    assert device.serving.version.digest == manifest.weights.digest
    assert device.serving.predict(np.zeros(64, np.float32)).output.shape == (10,)
    wait_until(lambda: device.client.connected and device.client.problem == "")


def test_of_the_next_version_only_what_is_missing_is_fetched(
    registry: Registry, device: Device
) -> None:
    registry.publish(make_version(registry, 1))
    device.client.start()
    device.wait_for_round(1)
    assert len(registry.fetched) == 4
    second = make_version(registry, 2)
    registry.publish(second)
    device.wait_for_round(2)
    assert registry.fetched[4:] == [second.weights.digest, second.self_test.blob.digest]


def test_a_registry_without_a_version_is_waited_for(registry: Registry, device: Device) -> None:
    device.client.start()
    wait_until(lambda: registry.watches == 1)
    registry.publish(make_version(registry, 0))
    device.wait_for_round(0)
    assert registry.watches == 1


def test_a_killed_registry_is_found_again(
    registry: Registry, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    registry.publish(make_version(registry, 1))
    device.client.start()
    device.wait_for_round(1)
    registry.kill()
    wait_until(lambda: "127.0.0.1" in device.client.problem)
    assert not device.client.connected
    assert device.serving.predict(np.zeros(64, np.float32)).version.round == 1
    registry.publish(make_version(registry, 2))
    registry.start()
    device.wait_for_round(2)
    wait_until(lambda: device.client.problem == "")
    assert "Traceback" not in caplog.text


def test_a_registry_that_comes_up_later_is_found(tmp_path: Path) -> None:
    registry = Registry()
    registry.start()
    registry.kill()
    device = Device(tmp_path, registry.port)
    device.client.start()
    wait_until(lambda: "cannot be reached" in device.client.problem)
    registry.publish(make_version(registry, 3))
    registry.start()
    device.wait_for_round(3)
    device.client.stop()
    registry.kill()


def tamper(registry: Registry, manifest: ModelManifest) -> None:
    content = bytearray(registry.blobs[manifest.weights.digest])
    content[0] ^= 1
    registry.blobs[manifest.weights.digest] = bytes(content)


def announce_more(registry: Registry, manifest: ModelManifest) -> None:
    registry.announced[manifest.weights.digest] = 2**50


def send_more(registry: Registry, manifest: ModelManifest) -> None:
    digest = manifest.weights.digest
    registry.announced[digest] = manifest.weights.size_bytes
    registry.blobs[digest] += bytes(100_000)


def send_less(registry: Registry, manifest: ModelManifest) -> None:
    digest = manifest.weights.digest
    registry.announced[digest] = manifest.weights.size_bytes
    registry.blobs[digest] = registry.blobs[digest][:-4]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (tamper, "weights: content does not match its hash"),
        (announce_more, f"weights: the registry announces {2**50} bytes"),
        (send_more, "weights: more bytes came than"),
        (send_less, "weights: 19236 of 19240 bytes came"),
    ],
)
def test_a_blob_other_than_the_signed_one_is_refused_and_the_old_version_serves_on(
    registry: Registry,
    device: Device,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Registry, ModelManifest], None],
    expected: str,
) -> None:
    registry.publish(make_version(registry, 1))
    device.client.start()
    device.wait_for_round(1)
    manifest = make_version(registry, 2)
    spoil(registry, manifest)
    registry.publish(manifest)
    wait_until(lambda: expected in device.client.problem)
    assert device.serving.predict(np.zeros(64, np.float32)).version.round == 1
    assert caplog.text.count(expected) == 1
    assert "Traceback" not in caplog.text
    registry.publish(make_version(registry, 3))
    device.wait_for_round(3)
    wait_until(lambda: device.client.problem == "")


def test_a_version_signed_by_another_key_is_refused_before_anything_is_fetched(
    registry: Registry, device: Device
) -> None:
    registry.publish(make_version(registry, 1), Ed25519PrivateKey.generate())
    device.client.start()
    wait_until(lambda: "not signed by the pinned release key" in device.client.problem)
    assert registry.fetched == []


def test_a_version_that_fails_its_self_test_is_refused(registry: Registry, device: Device) -> None:
    registry.publish(make_version(registry, 1))
    device.client.start()
    device.wait_for_round(1)
    answers_of_another = make_version(registry, 7).self_test
    registry.publish(replace(make_version(registry, 2), self_test=answers_of_another))
    wait_until(lambda: "self-test" in device.client.problem)
    assert device.serving.version.round == 1


def test_an_older_round_of_the_same_run_is_ignored(registry: Registry, device: Device) -> None:
    registry.publish(make_version(registry, 5))
    device.client.start()
    device.wait_for_round(5)
    old = make_version(registry, 4)
    registry.publish(old)
    registry.publish(make_version(registry, 6))
    device.wait_for_round(6)
    assert old.weights.digest not in registry.fetched
    assert device.client.problem == ""


def test_another_run_may_begin_from_round_0_again(registry: Registry, device: Device) -> None:
    registry.publish(make_version(registry, 5))
    device.client.start()
    device.wait_for_round(5)
    registry.publish(make_version(registry, 0, run_name="next run"))
    device.wait_for_round(0)


def test_a_version_that_is_here_is_neither_fetched_nor_swapped_again(
    registry: Registry, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped = []
    swap = device.serving.swap

    def count_and_swap(engine: Engine) -> None:
        swapped.append(engine.version.round)
        swap(engine)

    monkeypatch.setattr(device.serving, "swap", count_and_swap)
    registry.publish(make_version(registry, 1))
    device.client.start()
    device.wait_for_round(1)
    registry.kill()
    registry.start()
    wait_until(lambda: registry.watches >= 2 and device.client.connected)
    registry.publish(make_version(registry, 2))
    device.wait_for_round(2)
    assert len(registry.fetched) == 4 + 2
    assert swapped == [1, 2]


def test_an_installed_version_that_is_not_served_yet_gets_served(
    registry: Registry, device: Device, tmp_path: Path
) -> None:
    registry.publish(make_version(registry, 1))
    device.client.start()
    device.wait_for_round(1)
    device.client.stop()
    again = Device(tmp_path, registry.port)
    again.client.start()
    again.wait_for_round(1)
    assert len(registry.fetched) == 4
    again.client.stop()


def test_another_protocol_is_a_named_refusal_and_serving_goes_on(
    registry: Registry, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    registry.publish(make_version(registry, 1))
    device.client.start()
    device.wait_for_round(1)
    registry.kill()
    registry.protocol = PROTOCOL_VERSION + 1
    registry.start()
    wait_until(lambda: "another protocol" in device.client.problem and registry.watches > 3)
    assert device.serving.predict(np.zeros(64, np.float32)).version.round == 1
    assert caplog.text.count("another protocol") == 1
    registry.kill()
    registry.protocol = PROTOCOL_VERSION
    registry.start()
    wait_until(lambda: device.client.problem == "")


def test_an_unforeseen_failure_does_not_end_the_thread(
    registry: Registry,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry.publish(make_version(registry, 1))
    with monkeypatch.context() as broken:
        broken.setattr(device.rollout, "take", lambda *_: 1 / 0)
        device.client.start()
        wait_until(lambda: "division by zero" in device.client.problem)
    device.wait_for_round(1)
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("held", [False, True])
def test_stop_ends_the_thread_within_a_second_even_in_a_fetch(
    registry: Registry, device: Device, held: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    if held:
        registry.hold_fetches.set()
        registry.publish(make_version(registry, 1))
    device.client.start()
    wait_until(lambda: registry.watches == 1 and bool(registry.fetched) == held)
    started = time.monotonic()
    device.client.stop()
    assert time.monotonic() - started < 1.0
    assert not is_running()
    assert caplog.text == ""


def test_stop_without_a_start_and_twice_is_harmless(device: Device) -> None:
    device.client.stop()
    device.client.stop()
    assert not is_running()


def test_without_an_address_nothing_is_started(tmp_path: Path) -> None:
    rollout = Rollout(ModelStore(tmp_path / "m", None), Serving(), ModelsConfig())
    client = RegistryClient(RegistryClientConfig(address=""), rollout)
    client.start()
    assert not is_running()
    client.stop()
