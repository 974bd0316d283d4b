"""Keeps the model on this device up to date: watches the registry, fetches, installs, swaps.

One thread, supervised: whatever fails, the version that serves goes on serving, and the next
attempt starts from a fresh connection.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from edge_client.inference import Serving, Version
from edge_client.model_store import ModelStore, blobs_of
from edge_client.settings import RegistryClientConfig
from fedge.backoff import Backoff
from fedge.channels import client_channel, map_rpc_error
from fedge.chunks import join_chunks
from fedge.errors import FedgeError, ModelError, TransportError
from fedge.manifest import Blob, ModelManifest
from fedge.protocol import PROTOCOL_VERSION
from protos.fedge.v1 import registry_pb2, registry_pb2_grpc

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
FETCH_DEADLINE_S = 600.0


class RegistryClient:
    """Brings published versions to this device until it is stopped.

    Args:
        config: the registry's address and TLS.
        store: verifies and keeps what is fetched.
        serving: gets each new version.
        device: name of this device, for the server's log.
        num_threads: of the engines made.
        backoff: delays between connections.
    """

    def __init__(
        self,
        config: RegistryClientConfig,
        store: ModelStore,
        serving: Serving,
        *,
        device: str = "",
        num_threads: int = 1,
        backoff: Backoff | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._serving = serving
        self._device = device
        self._num_threads = num_threads
        self._backoff = backoff or Backoff(FIRST_DELAY_S, LONGEST_DELAY_S)
        self._stopping = threading.Event()
        self._look = threading.Event()
        self._connecting = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._thread = threading.Thread(target=self._run, name="registry-client", daemon=True)
        self._connected = False
        self._link_problem = ""
        self._model_problem = ""

    @property
    def connected(self) -> bool:
        """Whether the registry has sent something on the present connection."""
        return self._connected

    @property
    def problem(self) -> str:
        """Why this device does not get, or does not take, the newest version; or empty."""
        return self._model_problem or self._link_problem

    def start(self) -> None:
        """Begin to watch, in a thread; nothing is started where no address is configured."""
        if self._config.address:
            self._thread.start()

    def look_now(self) -> None:
        """Connect again now, if there is no connection, in place of waiting any longer."""
        self._look.set()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Cancel what is under way and wait for the thread to end."""
        self._stopping.set()
        self._look.set()
        with self._connecting:
            if self._channel is not None:
                self._channel.close()  # cancels the calls on it
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._watch()
            except Exception as error:
                if not self._stopping.is_set():
                    self._report_link(error)
            self._connected = False
            self._look.wait(self._backoff.next_delay_s())
            self._look.clear()

    def _watch(self) -> None:
        """Take every version of one connection; returns only by raising, or when stopped."""
        with self._connecting:
            if self._stopping.is_set():
                return
            self._channel = client_channel(self._config.address, self._config.tls)
        with self._channel as channel:
            stub = registry_pb2_grpc.ModelRegistryStub(channel)
            # From round 0: the server may have begun another run, which counts from 0 again. A
            # version that is here already costs one manifest.
            request = registry_pb2.WatchRequest(
                protocol=PROTOCOL_VERSION, known_round=0, device=self._device
            )
            for signed in stub.Watch(request):
                self._connected = True
                self._link_problem = ""
                self._take(stub, signed)
                self._backoff.reset()
        raise TransportError(f"registry {self._config.address} ended the stream")

    def _take(
        self, stub: registry_pb2_grpc.ModelRegistryStub, signed: registry_pb2.SignedManifest
    ) -> None:
        """Install one version and serve it; a version that must not be used is reported."""
        try:
            manifest = self._store.verify(signed.manifest, signed.signature)
            if self._is_older(manifest):
                return
            blobs = {
                blob.digest: self._fetch(stub, blob, what)
                for what, blob in blobs_of(manifest).items()
                if not self._store.has_blob(blob.digest)
            }
            version = self._store.install(signed.manifest, signed.signature, blobs)
            if not self._serves(version):
                self._serving.reload(lambda: self._store.load_engine(self._num_threads))
                log.info("serving round %d of %s", manifest.round, manifest.run_name)
        except ModelError as error:
            if str(error) != self._model_problem:
                log.error("a published version is not used: %s", error)
            self._model_problem = str(error)
        else:
            self._model_problem = ""

    def _is_older(self, manifest: ModelManifest) -> bool:
        current = self._store.current()
        if current is None or current.manifest.run_name != manifest.run_name:
            return False
        older = manifest.round < current.manifest.round
        if older:
            log.info(
                "round %d of %s is ignored: round %d is here",
                manifest.round,
                manifest.run_name,
                current.manifest.round,
            )
        return older

    def _serves(self, version: Version) -> bool:
        try:
            return self._serving.version == version
        except ModelError:  # there is no model yet
            return False

    def _fetch(self, stub: registry_pb2_grpc.ModelRegistryStub, blob: Blob, what: str) -> bytes:
        """Return the bytes of a blob; no more are taken than its signed manifest says.

        Raises:
            ModelError: what came is not what was signed.
            grpc.RpcError: the call failed.
        """
        request = registry_pb2.FetchRequest(protocol=PROTOCOL_VERSION, digest=blob.digest)
        call: Any = stub.Fetch(request, timeout=FETCH_DEADLINE_S)
        try:
            content = join_chunks(
                _data_of(call, blob, what),
                size_bytes=blob.size_bytes,
                limit_bytes=blob.size_bytes,
                what=what,
            )
        except TransportError as error:
            raise ModelError(str(error)) from error
        finally:
            call.cancel()
        return blob.check(content, what)

    def _report_link(self, error: Exception) -> None:
        if isinstance(error, grpc.RpcError):
            error = map_rpc_error(error, f"registry {self._config.address}")
        if not isinstance(error, FedgeError):
            log.exception("keeping the model up to date failed; trying again")
            self._link_problem = f"keeping the model up to date failed: {error!r}"
        elif str(error) != self._link_problem:
            log.warning("%s; this device goes on serving what it has", error)
            self._link_problem = str(error)


def _data_of(chunks: Iterable[registry_pb2.Chunk], blob: Blob, what: str) -> Iterator[bytes]:
    for index, chunk in enumerate(chunks):
        if index == 0 and chunk.size_bytes != blob.size_bytes:
            raise ModelError(
                f"{what}: the registry announces {chunk.size_bytes} bytes, the signed manifest "
                f"says {blob.size_bytes}"
            )
        yield chunk.data
