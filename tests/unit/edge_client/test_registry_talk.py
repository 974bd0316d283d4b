"""Between a device and its registry: weights as differences, reports, choices of a person."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from edge_client.model_store import version_id
from edge_client.outcomes import Fate, Outcome
from fedge.weight_delta import encode_delta
from protos.fedge.v1 import registry_pb2
from tests.unit.edge_client.fake_registry import Registry, make_version
from tests.unit.edge_client.test_registry_client import Device, round_of, wait_until
from tests.unit.edge_client.test_registry_client import device as device
from tests.unit.edge_client.test_registry_client import registry as registry


def encode(parent: bytes, weights: bytes) -> bytes:
    return encode_delta(parent, weights)


def encode_another(parent: bytes, weights: bytes) -> bytes:
    return encode_delta(parent, weights[4:] + weights[:4])


def encode_nothing(parent: bytes, weights: bytes) -> bytes:
    return b"nothing"


def test_weights_that_come_as_a_difference_are_those_that_were_signed(
    registry: Registry, device: Device
) -> None:
    registry.encode = encode
    registry.publish(make_version(registry, 1))
    device.client.start()
    device.wait_for_round(1)
    second = make_version(registry, 2)
    registry.publish(second)
    device.wait_for_round(2)
    assert registry.fetched[4:] == [second.weights.digest, second.self_test.blob.digest]
    found = device.store.read_blob("weights", second.weights)
    assert found == registry.blobs[second.weights.digest]


@pytest.mark.parametrize("spoilt", [encode_another, encode_nothing, None])
def test_a_difference_that_does_not_give_them_is_followed_by_the_whole_weights(
    registry: Registry,
    device: Device,
    caplog: pytest.LogCaptureFixture,
    spoilt: Callable[[bytes, bytes], bytes] | None,
) -> None:
    registry.encode = spoilt or encode
    if spoilt is None:
        registry.encoding = "of next year"
    registry.publish(make_version(registry, 1))
    device.client.start()
    device.wait_for_round(1)
    second = make_version(registry, 2)
    registry.publish(second)
    device.wait_for_round(2)
    assert registry.fetched[4:6] == [second.weights.digest] * 2
    assert "fetching them whole" in caplog.text
    assert device.client.problem == ""


def test_a_difference_from_weights_that_rotted_is_made_good(
    registry: Registry, device: Device
) -> None:
    registry.encode = encode
    first = make_version(registry, 1)
    registry.publish(first)
    device.client.start()
    device.wait_for_round(1)
    blob = next((device.store._root / "blobs").glob(first.weights.digest))
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    registry.publish(make_version(registry, 2))
    device.wait_for_round(2)


def test_the_server_is_told_what_became_of_each_version(registry: Registry, device: Device) -> None:
    first = make_version(registry, 1)
    registry.publish(first)
    device.client.start()
    device.wait_for_round(1)
    answers_of_another = make_version(registry, 7).self_test
    second = replace(make_version(registry, 2), self_test=answers_of_another)
    registry.publish(second)
    wait_until(lambda: len(registry.reports) == 2)
    assert [report.version for report in registry.reports] == [
        version_id(version.to_bytes()) for version in (first, second)
    ]
    fates = [report.fate for report in registry.reports]
    assert fates == [registry_pb2.FATE_SERVED, registry_pb2.FATE_REJECTED]
    assert "self-test" in registry.reports[1].reason
    assert {(report.device, report.node) for report in registry.reports} == {("test", "node")}


def test_a_report_that_does_not_arrive_is_made_with_the_next_connection(
    registry: Registry, device: Device
) -> None:
    registry.publish(make_version(registry, 1))
    device.client.start()
    wait_until(lambda: len(registry.reports) == 1)
    registry.kill()
    wait_until(lambda: not device.client.connected)
    outcome = Outcome("a" * 64, Fate.ROLLED_BACK, "by hand")
    device.rollout._tell(outcome)
    registry.start()
    wait_until(lambda: "a" * 64 in [report.version for report in registry.reports])


def test_a_choice_of_a_person_has_the_newest_version_offered_again(
    registry: Registry, device: Device
) -> None:
    first = make_version(registry, 1)
    registry.publish(first)
    device.client.start()
    device.wait_for_round(1)
    device.store.choices.pin(version_id(first.to_bytes()))
    device.rollout.check()
    registry.publish(make_version(registry, 2))
    wait_until(lambda: registry.watches >= 2 and device.client.connected)
    assert round_of(device.serving) == 1
    device.store.choices.pin("")
    device.rollout.check()
    device.wait_for_round(2)
