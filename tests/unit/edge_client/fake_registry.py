"""A model registry that tests can kill, start again, and make lie."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedge.channels import add_address, make_server
from fedge.chunks import iter_chunks
from fedge.manifest import Blob, ModelManifest, SelfTest, sign
from fedge.protocol import PROTOCOL_VERSION, refusal
from fedge.settings import TlsConfig
from fedge.tflite.patch import Patcher
from fedge.tflite.runner import Runner
from fedge.tflite.selftest import encode_self_test
from fedge.weight_delta import ENCODING
from protos.fedge.v1 import registry_pb2, registry_pb2_grpc

EDGE_FILES = Path(__file__).parents[3] / "fedge" / "tasks" / "digits_edge"
TEMPLATE = (EDGE_FILES / "template.tflite").read_bytes()
PLAN = (EDGE_FILES / "plan.json").read_bytes()
PATCHER = Patcher.from_bytes(TEMPLATE, PLAN)
KEY = Ed25519PrivateKey.generate()


class Registry(registry_pb2_grpc.ModelRegistryServicer):
    """A registry that can be killed, started again, and made to lie."""

    def __init__(self) -> None:
        self.protocol = PROTOCOL_VERSION
        self.blobs: dict[str, bytes] = {}
        self.announced: dict[str, int] = {}
        self.fetched: list[str] = []
        self.watches = 0
        self.reports: list[registry_pb2.ReportRequest] = []
        self.encode: Callable[[bytes, bytes], bytes] | None = None
        self.encoding = ENCODING
        self.hold_fetches = threading.Event()
        self._signed: list[registry_pb2.SignedManifest] = []
        self._changed = threading.Condition()
        self._server: grpc.Server | None = None
        self.port = 0

    def start(self) -> None:
        self._server = make_server(8)
        registry_pb2_grpc.add_ModelRegistryServicer_to_server(self, self._server)
        self.port = add_address(self._server, f"127.0.0.1:{self.port}", TlsConfig())
        self._server.start()

    def kill(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def publish(self, manifest: ModelManifest, key: Ed25519PrivateKey = KEY) -> None:
        content = manifest.to_bytes()
        signed = registry_pb2.SignedManifest(manifest=content, signature=sign(content, key))
        with self._changed:
            self._signed.append(signed)
            self._changed.notify_all()

    def add_blobs(self, *contents: bytes) -> None:
        self.blobs.update({Blob.of(content).digest: content for content in contents})

    def Watch(  # noqa: N802
        self, request: registry_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[registry_pb2.SignedManifest]:
        self.watches += 1
        if request.protocol != self.protocol:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, refusal(request.protocol))
        sent = max(0, len(self._signed) - 1)
        while context.is_active():
            with self._changed:
                if len(self._signed) == sent:
                    self._changed.wait(timeout=0.05)
                new = self._signed[sent:]
            sent += len(new)
            yield from new

    def Fetch(  # noqa: N802
        self, request: registry_pb2.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[registry_pb2.Chunk]:
        self.fetched.append(request.digest)
        while self.hold_fetches.is_set() and context.is_active():
            time.sleep(0.01)
        content = self.blobs[request.digest]
        encoding = ""
        if self.encode is not None and request.parent in self.blobs:
            content, encoding = self.encode(self.blobs[request.parent], content), self.encoding
        size = self.announced.get(request.digest, len(content))
        for chunk in iter_chunks(content, 4096):
            yield registry_pb2.Chunk(data=chunk, size_bytes=size, encoding=encoding)

    def Report(  # noqa: N802
        self, request: registry_pb2.ReportRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ReportResponse:
        self.reports.append(request)
        return registry_pb2.ReportResponse()


def make_version(
    registry: Registry, round: int, *, run_name: str = "run", seed: int | None = None
) -> ModelManifest:
    """Put the blobs of a version into the registry and return its manifest, unpublished."""
    generator = np.random.default_rng(round if seed is None else seed)
    layout = PATCHER.plan.layout
    weights = generator.normal(0, 0.1, layout.size).astype(np.float32)
    inputs = np.random.default_rng(0).random((2, 64), np.float32)
    outputs = Runner(PATCHER.patch(layout, weights), 1).run(inputs)
    test = encode_self_test(inputs, outputs)
    registry.add_blobs(weights.tobytes(), TEMPLATE, PLAN, test)
    return ModelManifest(
        protocol=PROTOCOL_VERSION,
        run_name=run_name,
        round=round,
        task="digits",
        layout_json=layout.to_json(),
        weights=Blob.of(weights.tobytes()),
        template=Blob.of(TEMPLATE),
        plan=Blob.of(PLAN),
        self_test=SelfTest(Blob.of(test), inputs.shape, outputs.shape),
    )
