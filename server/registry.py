"""The gRPC model registry: tells devices of new versions, hands them out, hears how they fared.

It runs on one event loop in one thread, so that a watcher costs a coroutine, not a thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator

import grpc
from grpc import aio

from fedge.channels import add_address, make_async_server
from fedge.chunks import CHUNK_BYTES, iter_chunks
from fedge.protocol import PROTOCOL_VERSION, refusal
from fedge.settings import TlsConfig
from fedge.weight_delta import ENCODING
from protos.fedge.v1 import registry_pb2, registry_pb2_grpc
from server.differences import Differences
from server.publisher import DIGEST, PublishedVersion, Publisher
from server.staging import Staging

log = logging.getLogger(__name__)

MAX_CALLS = 10_000
STOP_GRACE_S = 0.5
MAX_REASON = 500
MAX_NODE = 80
_FATES = (registry_pb2.FATE_SERVED, registry_pb2.FATE_REJECTED, registry_pb2.FATE_ROLLED_BACK)


class RegistryService(registry_pb2_grpc.ModelRegistryServicer):
    """The service over a `Staging`; every method runs on the server's event loop."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._publisher = staging.publisher
        self._differences = Differences(staging.publisher)
        self._encoding = asyncio.Lock()
        self._published = asyncio.Condition()
        self.num_watchers = 0

    async def announce(self) -> None:
        """Wake every watcher."""
        async with self._published:
            self._published.notify_all()

    async def Watch(  # noqa: N802  gRPC's name
        self,
        request: registry_pb2.WatchRequest,
        context: aio.ServicerContext[registry_pb2.WatchRequest, registry_pb2.SignedManifest],
    ) -> AsyncIterator[registry_pb2.SignedManifest]:
        """Send the newest version for this device, then each newer one; slow ones skip some."""
        await _check_protocol(request.protocol, context)
        node = _node_of(request)
        log.info("%s watches from round %d", request.device[:80] or "a device", request.known_round)
        self.num_watchers += 1
        try:
            sequence = 0
            while True:
                version = await self._newer_than(sequence, node)
                sequence = version.sequence
                if version.manifest.round >= request.known_round:
                    self._staging.told(node, version)
                    yield registry_pb2.SignedManifest(
                        manifest=version.content, signature=version.signature
                    )
        finally:
            self.num_watchers -= 1

    async def Fetch(  # noqa: N802  gRPC's name
        self,
        request: registry_pb2.FetchRequest,
        context: aio.ServicerContext[registry_pb2.FetchRequest, registry_pb2.Chunk],
    ) -> AsyncIterator[registry_pb2.Chunk]:
        """Send one blob in chunks, read from disk as they go."""
        await _check_protocol(request.protocol, context)
        if not DIGEST.fullmatch(request.digest):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "digest must be 64 lower-case hex digits"
            )
        difference = await self._difference(request)
        if difference is not None:
            for piece in iter_chunks(difference):
                yield registry_pb2.Chunk(data=piece, size_bytes=len(difference), encoding=ENCODING)
            return
        try:
            file = self._publisher.open_blob(request.digest)
        except FileNotFoundError:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no blob {request.digest[:12]} is published (any more); watch for a newer version",
            )
            raise AssertionError("abort raises") from None
        with file:
            size_bytes = os.fstat(file.fileno()).st_size
            chunk = await asyncio.to_thread(file.read, CHUNK_BYTES)
            yield registry_pb2.Chunk(data=chunk, size_bytes=size_bytes)
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield registry_pb2.Chunk(data=chunk)

    async def Report(  # noqa: N802  gRPC's name
        self,
        request: registry_pb2.ReportRequest,
        context: aio.ServicerContext[registry_pb2.ReportRequest, registry_pb2.ReportResponse],
    ) -> registry_pb2.ReportResponse:
        """Note what became of a version on a device."""
        await _check_protocol(request.protocol, context)
        if request.fate not in _FATES or not DIGEST.fullmatch(request.version):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "a report names a version and its fate"
            )
        served = request.fate == registry_pb2.FATE_SERVED
        reason = "" if served else request.reason[:MAX_REASON] or "no reason was given"
        self._staging.report(_node_of(request), request.version, reason)
        return registry_pb2.ReportResponse()

    async def _difference(self, request: registry_pb2.FetchRequest) -> bytes | None:
        """Return a blob as what differs from another one, if that saves anything."""
        if not request.parent or not DIGEST.fullmatch(request.parent):
            return None
        async with self._encoding:  # devices ask for the same one all at once
            return await asyncio.to_thread(self._differences.get, request.parent, request.digest)

    async def _newer_than(self, sequence: int, node: str) -> PublishedVersion:
        while True:
            async with self._published:
                version = self._staging.version_for(node)
                if version is not None and version.sequence > sequence:
                    return version
                await self._published.wait()


class RegistryServer:
    """The registry in a thread of its own.

    Args:
        address: ``host:port`` to serve on.
        staging: who gets which version; None sends each to all.
    """

    def __init__(
        self, publisher: Publisher, address: str, tls: TlsConfig, staging: Staging | None = None
    ) -> None:
        self._staging = staging or Staging(publisher)
        self._address = address
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="registry", daemon=True)
        self._service: RegistryService | None = None
        self._server: aio.Server | None = None

    @property
    def num_watchers(self) -> int:
        """Devices that are watching now."""
        return self._service.num_watchers if self._service is not None else 0

    def start(self) -> int:
        """Begin to serve and return the port.

        Raises:
            ConfigError: the address is taken or cannot be used.
        """
        self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise

    def stop(self) -> None:
        """End every call and the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
            self._end_loop()

    async def _start(self) -> int:
        server = make_async_server(max_concurrent=MAX_CALLS)
        service = RegistryService(self._staging)
        registry_pb2_grpc.add_ModelRegistryServicer_to_server(service, server)
        port = add_address(server, self._address, self._tls, key="registry.address")
        await server.start()
        self._server, self._service = server, service
        self._staging.publisher.listen(self._announce)
        return port

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)

    def _announce(self, version: PublishedVersion) -> None:
        """Wake the watchers from the publishing thread."""
        if self._service is not None and not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._service.announce(), self._loop)
            log.info(
                "published round %d, %s, %s, %d devices watch",
                version.manifest.round,
                version.manifest.weights.digest[:12],
                version.stage.value,
                self.num_watchers,
            )

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _check_protocol(found: int, context: aio.ServicerContext) -> None:  # type: ignore[type-arg]
    if found != PROTOCOL_VERSION:
        # The code that fedge.channels.map_rpc_error turns into a ProtocolMismatch.
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            refusal(found),
        )


def _node_of(request: registry_pb2.WatchRequest | registry_pb2.ReportRequest) -> str:
    """Return what tells a device from others: its random name, or whatever an older one sends."""
    return (request.node or request.device)[:MAX_NODE]
