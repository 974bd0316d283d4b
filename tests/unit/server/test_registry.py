"""The model registry over real gRPC on loopback."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedge.channels import client_channel, map_rpc_error
from fedge.errors import ConfigError, ProtocolMismatch
from fedge.manifest import Blob, SelfTest, verify
from fedge.params import Layout
from fedge.protocol import PROTOCOL_VERSION
from fedge.settings import TlsConfig
from fedge.weight_delta import ENCODING, decode_delta
from protos.fedge.v1.registry_pb2 import (
    FATE_REJECTED,
    FATE_UNSPECIFIED,
    Fate,
    FetchRequest,
    ReportRequest,
    SignedManifest,
    WatchRequest,
)
from protos.fedge.v1.registry_pb2_grpc import ModelRegistryStub
from server.canary import is_canary
from server.export import ExportedModel
from server.publisher import Publisher
from server.registry import RegistryServer
from server.settings import CanaryConfig
from server.staging import Staging
from tests.tls_files import make_tls

DEADLINE_S = 30.0
KEY = Ed25519PrivateKey.generate()


def model(weights: bytes) -> ExportedModel:
    content = b"self-test"
    return ExportedModel(
        layout=Layout(("weight",), ((len(weights) // 4,),)),
        weights=weights,
        template=b"template",
        plan=b"{}",
        self_test=SelfTest(Blob.of(content), (1, 2), (1, 2)),
        self_test_content=content,
    )


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path, KEY, run_name="run", task="digits", keep_versions=3)


@pytest.fixture
def served(publisher: Publisher) -> Iterator[tuple[RegistryServer, str]]:
    server = RegistryServer(publisher, "127.0.0.1:0", TlsConfig())
    port = server.start()
    yield server, f"127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def stub(served: tuple[RegistryServer, str]) -> Iterator[ModelRegistryStub]:
    with client_channel(served[1], TlsConfig()) as channel:
        yield ModelRegistryStub(channel)


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, "the condition did not come true in time"
        time.sleep(0.01)


def watch(known_round: int = 0, protocol: int = PROTOCOL_VERSION, node: str = "") -> WatchRequest:
    return WatchRequest(protocol=protocol, known_round=known_round, device="test", node=node)


def fetch(digest: str, protocol: int = PROTOCOL_VERSION, parent: str = "") -> FetchRequest:
    return FetchRequest(protocol=protocol, digest=digest, parent=parent)


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def test_a_watcher_gets_the_newest_version_at_once_then_each_new_one(
    publisher: Publisher, stub: ModelRegistryStub
) -> None:
    publisher.publish(1, model(b"1" * 8))
    stream = stub.Watch(watch(), timeout=DEADLINE_S)
    rounds = [_round(next(iter(stream)))]
    for round in (2, 3):
        publisher.publish(round, model(bytes([round]) * 8))
        rounds.append(_round(next(iter(stream))))
    assert rounds == [1, 2, 3]


def test_a_watcher_that_came_first_gets_the_first_version(
    publisher: Publisher, stub: ModelRegistryStub, served: tuple[RegistryServer, str]
) -> None:
    stream = stub.Watch(watch(), timeout=DEADLINE_S)
    wait_until(lambda: served[0].num_watchers == 1)
    publisher.publish(0, model(b"0" * 8))
    assert _round(next(iter(stream))) == 0


def test_nothing_older_than_the_known_round_is_sent(
    publisher: Publisher, stub: ModelRegistryStub
) -> None:
    publisher.publish(3, model(b"3" * 8))
    stream = stub.Watch(watch(known_round=4), timeout=DEADLINE_S)
    publisher.publish(4, model(b"4" * 8))
    assert _round(next(iter(stream))) == 4


def test_over_tls_only_those_who_trust_its_authority_are_served(
    publisher: Publisher, tmp_path: Path
) -> None:
    server_tls, client_tls = make_tls(tmp_path)
    publisher.publish(1, model(b"1" * 8))
    server = RegistryServer(publisher, "127.0.0.1:0", server_tls)
    address = f"127.0.0.1:{server.start()}"
    try:
        with client_channel(address, client_tls) as channel:
            stream = ModelRegistryStub(channel).Watch(watch(), timeout=DEADLINE_S)
            assert _round(next(iter(stream))) == 1
        with client_channel(address, TlsConfig()) as channel:
            plain = ModelRegistryStub(channel)
            refused = code_of(lambda: next(iter(plain.Watch(watch(), timeout=DEADLINE_S))))
        assert refused == grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop()


def test_a_hundred_and_fifty_watchers_all_hear_of_a_version_and_fetch_still_works(
    publisher: Publisher, stub: ModelRegistryStub, served: tuple[RegistryServer, str]
) -> None:
    streams = [stub.Watch(watch(), timeout=DEADLINE_S) for _ in range(150)]
    wait_until(lambda: served[0].num_watchers == 150)
    threads = threading.active_count()
    version = publisher.publish(7, model(b"7" * 8))
    assert {_round(next(iter(stream))) for stream in streams} == {7}
    chunks = stub.Fetch(fetch(version.manifest.weights.digest), timeout=DEADLINE_S)
    assert b"".join(chunk.data for chunk in chunks) == b"7" * 8
    assert threads < 150
    for stream in streams:
        stream.cancel()  # type: ignore[no-untyped-call]
    wait_until(lambda: served[0].num_watchers == 0)


def test_a_large_blob_comes_in_chunks_with_its_length_first(
    publisher: Publisher, stub: ModelRegistryStub
) -> None:
    weights = bytes(range(256)) * 4096 * 3  # 3 MiB
    version = publisher.publish(1, model(weights))
    chunks = list(stub.Fetch(fetch(version.manifest.weights.digest), timeout=DEADLINE_S))
    assert len(chunks) > 1
    assert chunks[0].size_bytes == len(weights)
    assert version.manifest.weights.check(b"".join(c.data for c in chunks), "weights") == weights


def test_another_protocol_is_refused_and_both_versions_are_named(
    publisher: Publisher, stub: ModelRegistryStub
) -> None:
    publisher.publish(1, model(b"1" * 8))
    other = PROTOCOL_VERSION + 1
    for call in (stub.Watch(watch(protocol=other)), stub.Fetch(fetch("a" * 64, protocol=other))):
        with pytest.raises(grpc.RpcError) as caught:
            next(iter(call))
        error = map_rpc_error(caught.value)
        assert isinstance(error, ProtocolMismatch)
        assert str(other) in str(error)
        assert str(PROTOCOL_VERSION) in str(error)


def test_an_unknown_digest_is_not_found_and_a_path_is_invalid(
    publisher: Publisher, stub: ModelRegistryStub
) -> None:
    publisher.publish(1, model(b"1" * 8))
    assert code_of(lambda: next(iter(stub.Fetch(fetch("a" * 64))))) is grpc.StatusCode.NOT_FOUND
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(lambda: next(iter(stub.Fetch(fetch("../versions/00000001.json"))))) is invalid


def test_a_taken_port_is_a_config_error(
    publisher: Publisher, served: tuple[RegistryServer, str]
) -> None:
    second = RegistryServer(publisher, served[1], TlsConfig())
    with pytest.raises(ConfigError, match="cannot serve on"):
        second.start()


def test_stopping_ends_the_watchers_streams(publisher: Publisher) -> None:
    server = RegistryServer(publisher, "127.0.0.1:0", TlsConfig())
    address = f"127.0.0.1:{server.start()}"
    with client_channel(address, TlsConfig()) as channel:
        stream = ModelRegistryStub(channel).Watch(watch(), timeout=DEADLINE_S)
        wait_until(lambda: server.num_watchers == 1)
        server.stop()
        assert code_of(lambda: next(iter(stream))) is not grpc.StatusCode.DEADLINE_EXCEEDED


def test_weights_come_as_a_difference_from_those_that_a_device_has(
    publisher: Publisher, stub: ModelRegistryStub
) -> None:
    generator = np.random.default_rng(0)
    old = generator.normal(size=600_000).astype("<f4")
    new = (old * (1 + generator.normal(0, 1e-3, old.size))).astype("<f4")
    versions = [publisher.publish(r, model(w.tobytes())) for r, w in ((1, old), (2, new))]
    parent, digest = (version.manifest.weights.digest for version in versions)
    chunks = list(stub.Fetch(fetch(digest, parent=parent), timeout=DEADLINE_S))
    content = b"".join(chunk.data for chunk in chunks)
    assert chunks[0].encoding == ENCODING
    assert chunks[0].size_bytes == len(content) < 0.8 * new.nbytes
    assert decode_delta(content, old.tobytes()) == new.tobytes()
    for unknown in ("a" * 64, "../../etc/passwd", ""):
        chunks = list(stub.Fetch(fetch(digest, parent=unknown), timeout=DEADLINE_S))
        assert chunks[0].encoding == ""
        assert b"".join(chunk.data for chunk in chunks) == new.tobytes()


def report(version: str, node: str, fate: Fate.ValueType = FATE_REJECTED) -> ReportRequest:
    return ReportRequest(
        protocol=PROTOCOL_VERSION, node=node, version=version, fate=fate, reason="self-test"
    )


def test_canaries_are_sent_a_version_first_and_their_reports_withdraw_it(
    publisher: Publisher,
) -> None:
    publisher.publish(1, model(b"1" * 8))
    staging = Staging(publisher, CanaryConfig(fraction=0.5, trial_s=600.0))
    server = RegistryServer(publisher, "127.0.0.1:0", TlsConfig(), staging)
    address = f"127.0.0.1:{server.start()}"
    canary, other = (
        next(n for n in map(str, range(99)) if is_canary(n, 2, 0.5) == drawn)
        for drawn in (True, False)
    )
    try:
        with client_channel(address, TlsConfig()) as channel:
            stub = ModelRegistryStub(channel)
            streams = {
                node: iter(stub.Watch(watch(node=node), timeout=DEADLINE_S))
                for node in (canary, other)
            }
            assert {_round(next(stream)) for stream in streams.values()} == {1}
            staging.publish(2, model(b"2" * 8))
            assert _round(next(streams[canary])) == 2
            assert publisher.candidate is not None
            stub.Report(report(publisher.candidate.id, canary), timeout=DEADLINE_S)
            staging.check()
            again = next(streams[canary])
            assert (_round(again), again) == (2, next(streams[other]))
            manifest = verify(again.manifest, again.signature, KEY.public_key())
            assert manifest.weights == Blob.of(b"1" * 8)
    finally:
        server.stop()


def test_a_report_of_nothing_is_invalid(stub: ModelRegistryStub) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    for bad in (report("v1", "node"), report("a" * 64, "node", FATE_UNSPECIFIED)):
        assert code_of(functools.partial(stub.Report, bad)) is invalid
    stub.Report(report("a" * 64, "node"), timeout=DEADLINE_S)  # of a version nobody knows


def _round(signed: SignedManifest) -> int:
    return verify(signed.manifest, signed.signature, KEY.public_key()).round
