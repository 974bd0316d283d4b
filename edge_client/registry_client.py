"""Keeps the model on this device up to date: watches the registry, fetches, installs, swaps.

One thread, supervised: whatever fails, the version that serves goes on serving, and the next
attempt starts from a fresh connection.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from functools import partial
from itertools import chain
from typing import Any

import grpc

from edge_client.model_store import blobs_of
from edge_client.outcomes import Fate, Outcome
from edge_client.pulse import Pulse
from edge_client.rollout import Rollout
from edge_client.settings import RegistryClientConfig
from fedge.backoff import Backoff
from fedge.channels import client_channel, map_rpc_error
from fedge.chunks import join_chunks
from fedge.errors import FedgeError, ModelError, TransportError
from fedge.manifest import Blob, ModelManifest
from fedge.protocol import PROTOCOL_VERSION
from fedge.weight_delta import ENCODING, decode_delta
from protos.fedge.v1 import registry_pb2, registry_pb2_grpc

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
FETCH_DEADLINE_S = 600.0
INSTALL_S = 5 * FETCH_DEADLINE_S  # four blobs, then patch and self-test
REPORT_DEADLINE_S = 10.0
MAX_REASON = 500
MAX_OUTCOMES = 16  # that wait to be told; the newest count

_FATES = {
    Fate.SERVED: registry_pb2.FATE_SERVED,
    Fate.REJECTED: registry_pb2.FATE_REJECTED,
    Fate.ROLLED_BACK: registry_pb2.FATE_ROLLED_BACK,
}


class RegistryClient:
    """Brings published versions to this device until it is stopped.

    Args:
        config: the registry's address and TLS.
        rollout: takes what is fetched into service; its outcomes are told to the server.
        device: name of this device, for the server's log.
        node: its random name, by which the server tells devices apart.
        backoff: delays between connections.
    """

    def __init__(
        self,
        config: RegistryClientConfig,
        rollout: Rollout,
        *,
        device: str = "",
        node: str = "",
        backoff: Backoff | None = None,
    ) -> None:
        self._config = config
        self._rollout = rollout
        self._device = device
        self._node = node
        self._backoff = backoff or Backoff(FIRST_DELAY_S, LONGEST_DELAY_S)
        self._stopping = threading.Event()
        self._look = threading.Event()
        self._connecting = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._thread = threading.Thread(target=self._run, name="registry-client", daemon=True)
        self.pulse = Pulse()
        self._connected = False
        self._link_problem = ""
        self._model_problem = ""
        self._telling = threading.RLock()
        self._outcomes: deque[Outcome] = deque(maxlen=MAX_OUTCOMES)
        if config.address:
            rollout.listen(self._tell, self.rewatch)

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

    def rewatch(self) -> None:
        """Connect anew, so that the newest version is offered again."""
        with self._connecting:
            if self._channel is not None:
                self._channel.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._watch()
            except Exception as error:
                if not self._stopping.is_set():
                    self._report_link(error)
            self._connected = False
            self.pulse.beat(None)
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
                protocol=PROTOCOL_VERSION, known_round=0, device=self._device, node=self._node
            )
            for signed in stub.Watch(request):
                self._connected = True
                self._link_problem = ""
                self.pulse.beat(INSTALL_S)
                self._take(stub, signed)
                self._tell_all()
                self.pulse.beat(None)  # the next version comes when it comes
                self._backoff.reset()
        raise TransportError(f"registry {self._config.address} ended the stream")

    def _take(
        self, stub: registry_pb2_grpc.ModelRegistryStub, signed: registry_pb2.SignedManifest
    ) -> None:
        """Install one version and serve it; a version that must not be used is named."""
        store = self._rollout.store
        try:
            manifest = store.verify(signed.manifest, signed.signature)
            if self._rollout.wants(manifest, signed.manifest):
                blobs = self._fetch_missing(stub, manifest)
                self._rollout.take(signed.manifest, signed.signature, blobs)
        except ModelError as error:
            if str(error) != self._model_problem:
                log.error("a published version is not used: %s", error)
            self._model_problem = str(error)
        else:
            self._model_problem = ""

    def _fetch_missing(
        self, stub: registry_pb2_grpc.ModelRegistryStub, manifest: ModelManifest
    ) -> dict[str, bytes]:
        """Return by digest what a version names and this device lacks."""
        store, blobs = self._rollout.store, {}
        for what, blob in blobs_of(manifest).items():
            if store.has_blob(blob.digest):
                continue
            fetched = None
            if what == "weights":
                fetched = self._fetch_difference(stub, blob)
            blobs[blob.digest] = self._fetch(stub, blob, what) if fetched is None else fetched
        return blobs

    def _fetch_difference(
        self, stub: registry_pb2_grpc.ModelRegistryStub, blob: Blob
    ) -> bytes | None:
        """Return weights, which may come as a difference from those here; None to ask again.

        Raises:
            ModelError: they came whole and are not what was signed.
        """
        current = self._rollout.store.current() if self._rollout.names_version else None
        if current is None or current.manifest.weights.size_bytes != blob.size_bytes:
            return None
        parent = current.manifest.weights
        content, encoding = self._receive(stub, blob, "weights", parent.digest)
        if not encoding:
            return blob.check(content, "weights")
        try:
            if encoding != ENCODING:
                raise ModelError(f"weights: nobody here knows the encoding {encoding!r:.40}")
            base = self._rollout.store.read_blob("weights", parent)
            return blob.check(decode_delta(content, base), "weights")
        except ModelError as error:
            log.warning("%s; fetching them whole", error)
            return None

    def _fetch(self, stub: registry_pb2_grpc.ModelRegistryStub, blob: Blob, what: str) -> bytes:
        """Return the bytes of a blob; no more are taken than its signed manifest says.

        Raises:
            ModelError: what came is not what was signed.
            grpc.RpcError: the call failed.
        """
        content, encoding = self._receive(stub, blob, what)
        if encoding:
            raise ModelError(f"{what}: came encoded, which nobody asked for")
        return blob.check(content, what)

    def _receive(
        self, stub: registry_pb2_grpc.ModelRegistryStub, blob: Blob, what: str, parent: str = ""
    ) -> tuple[bytes, str]:
        """Return what came and how it is encoded; never more bytes than the blob has."""
        request = registry_pb2.FetchRequest(
            protocol=PROTOCOL_VERSION, digest=blob.digest, parent=parent
        )
        call: Any = stub.Fetch(request, timeout=FETCH_DEADLINE_S)
        try:
            first = next(iter(call), registry_pb2.Chunk())
            size_bytes = first.size_bytes
            if size_bytes > blob.size_bytes or (
                size_bytes < blob.size_bytes and not first.encoding
            ):
                raise ModelError(
                    f"{what}: the registry announces {size_bytes} bytes, the signed manifest "
                    f"says {blob.size_bytes}"
                )
            content = join_chunks(
                (chunk.data for chunk in chain([first], call)),
                size_bytes=size_bytes,
                limit_bytes=blob.size_bytes,
                what=what,
            )
        except TransportError as error:
            raise ModelError(str(error)) from error
        finally:
            call.cancel()
        return content, first.encoding

    def _tell(self, outcome: Outcome) -> None:
        """Tell the server what became of a version: now, or with the next connection."""
        with self._telling:
            self._outcomes.append(outcome)
        if self._connected:
            self._tell_all()

    def _tell_all(self) -> None:
        with self._connecting, self._telling:
            if self._channel is None or self._stopping.is_set():
                return
            stub = registry_pb2_grpc.ModelRegistryStub(self._channel)
            outcomes = list(self._outcomes)
            self._outcomes.clear()
            for outcome in outcomes:
                try:
                    call = stub.Report.future(self._request_of(outcome), timeout=REPORT_DEADLINE_S)
                except ValueError:  # the channel has just been closed
                    self._keep(outcome)
                else:
                    call.add_done_callback(partial(self._told, outcome))

    def _told(self, outcome: Outcome, call: Any) -> None:
        """Keep for the next connection what did not arrive; a server that takes none is let be."""
        if call.cancelled() or call.code() not in (
            grpc.StatusCode.OK,
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.INVALID_ARGUMENT,
        ):
            self._keep(outcome)

    def _keep(self, outcome: Outcome) -> None:
        with self._telling:
            if len(self._outcomes) < MAX_OUTCOMES:
                self._outcomes.appendleft(outcome)

    def _request_of(self, outcome: Outcome) -> registry_pb2.ReportRequest:
        return registry_pb2.ReportRequest(
            protocol=PROTOCOL_VERSION,
            device=self._device,
            node=self._node,
            version=outcome.version,
            fate=_FATES[outcome.fate],
            reason=outcome.reason[:MAX_REASON],
            metric=outcome.metric,
            metric_before=outcome.metric_before,
            num_labelled=outcome.num_labelled,
        )

    def _report_link(self, error: Exception) -> None:
        if isinstance(error, grpc.RpcError):
            error = map_rpc_error(error, f"registry {self._config.address}")
        if not isinstance(error, FedgeError):
            log.exception("keeping the model up to date failed; trying again")
            self._link_problem = f"keeping the model up to date failed: {error!r}"
        elif str(error) != self._link_problem:
            log.warning("%s; this device goes on serving what it has", error)
            self._link_problem = str(error)
