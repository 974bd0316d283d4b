"""The only file that touches Flower's undocumented API.

Flower's own SuperNode starts a process per message, sleeps seconds between polls, and ends the
process when its heartbeat fails (measured; see docs/decisions.md). `NodeConnection` speaks to the
same SuperLink with Flower's own HTTP client and message classes, and does none of that: every
error becomes a `TransportError` that says what to do, and whoever owns the connection reconnects.

Tested with flwr 1.41; ``tests/unit/fedge/test_flower_internals.py`` guards every name used here.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_and_inflate_object_from_tree,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import DecodeError

from fedge.errors import ConfigError, TransportError
from fedge.heartbeat import Heartbeat
from fedge.superlink_errors import (
    Refused,
    RunNotRunning,
    explain_not_activated,
    explain_unauthorized,
    explain_unreachable,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

TESTED_VERSION = "1.41"
ERROR_CODE_APP_FAILED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION

OBJECT_RETRY_S = 0.02
"""A message is announced before its parts are uploaded; Flower waits 1 s, then 2 s, for them."""

_log = logging.getLogger(__name__)


def set_task_identity(run_id: int, node_id: int) -> None:
    """Let this process make instruction messages although Flower did not start it as a task."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = 0


def quicken_grid() -> None:
    """Let this ServerApp's grid look again for a reply's missing parts soon, not after a second.

    A reply that cannot be read becomes an error of its own; Flower drops its whole batch.
    """

    def pull(object_ids: list[str], pull_object_fn: Any) -> dict[str, bytes]:
        found = pull_objects(object_ids, pull_object_fn, initial_backoff=OBJECT_RETRY_S)
        try:  # the message is the last object, behind its parts
            inflate_object_from_contents(object_ids[-1], found, keep_object_contents=True)
        except Exception as error:  # of hostile bytes: whatever Flower's parsers raise
            raise ObjectPullError(object_ids[-1], f"cannot be read: {error!r:.200}") from error
        return found

    http_grid.pull_objects = pull  # type: ignore[attr-defined, assignment]


def assign_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would have given it; for in-process grids."""
    message.metadata.__dict__["_message_id"] = message_id


def pack_message(message: Message) -> bytes:
    """Return what a reply to a message needs, without the content; `unpack_message` reads it."""
    return message_to_proto(remove_content_from_message(message)).SerializeToString()


def unpack_message(content: bytes) -> Message:
    """Read what `pack_message` wrote.

    Raises:
        TransportError: it is something else.
    """
    try:
        return message_from_proto(MessageProto.FromString(content))
    except (DecodeError, ValueError) as error:
        raise TransportError(f"not a packed message: {error}") from error


@dataclass(frozen=True)
class NodeIdentity:
    """The key pair that makes a device the same node in each of its lives."""

    private_key: ec.EllipticCurvePrivateKey

    @property
    def public_pem(self) -> bytes:
        """Public key as the SuperLink files it."""
        return public_key_to_bytes(self.private_key.public_key())

    def to_pem(self) -> bytes:
        """Return the private key as unencrypted PEM, read back by `from_pem`."""
        return private_key_to_bytes(self.private_key)

    @staticmethod
    def generate() -> NodeIdentity:
        """Return a new identity."""
        return NodeIdentity(generate_key_pairs()[0])

    @staticmethod
    def from_pem(content: bytes) -> NodeIdentity:
        """Read what `to_pem` wrote.

        Raises:
            ConfigError: it is not a private key.
        """
        try:
            return NodeIdentity(bytes_to_private_key(content))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"not a private key in PEM: {error}") from error


class NodeConnection:
    """One session of a node at a SuperLink: open, then pull and push, then close.

    Args:
        address: ``host:port`` of the SuperLink.
        identity: who this node is.
        ca: certificate authority (PEM file) of the SuperLink; None speaks plaintext.
        known_node_id: id of the last session if it was not closed; then the SuperLink still
            thinks it is online and refuses a second activation for up to a minute, and this
            session takes its place instead.
    """

    def __init__(
        self,
        address: str,
        identity: NodeIdentity,
        *,
        ca: Path | None = None,
        known_node_id: int | None = None,
    ) -> None:
        self._address = address
        self._identity = identity
        self._known_node_id = known_node_id
        self._node: Node | None = None
        self._heartbeat: Heartbeat | None = None
        with self._mapped("opening the connection"):
            self._client = FleetHttpClient.from_server_address(
                address,
                ca is None,
                None if ca is None else str(ca),
                interceptors=[
                    _VersionHeaders(),
                    NodeAuthHttpInterceptor(
                        identity.private_key, identity.private_key.public_key()
                    ),
                ],
            )

    def open(self) -> int:
        """Register (where the SuperLink allows it), activate, begin heartbeats; return node id.

        Raises:
            TransportError: the SuperLink cannot be reached, or refuses this node.
        """
        self._register()
        self._node = Node(node_id=self._activate())
        self._heartbeat = Heartbeat(self._send_heartbeat)
        self._heartbeat.start()
        return int(self._node.node_id)

    def pull(self) -> Message | None:
        """Return the next message with its content, or None when none waits.

        Raises:
            RunNotRunning: a message of a run that has ended was dropped.
            TransportError: reconnect, then try again.
        """
        node = self._session()
        with self._mapped("pulling a message"):
            response = self._client.PullMessages(PullMessagesRequest(node=node))
            if not response.messages_list:
                return None
            run_id = response.messages_list[0].metadata.run_id
            tree = response.message_object_trees[0]
            message = pull_and_inflate_object_from_tree(
                tree,
                make_pull_object_fn_protobuf(self._client.PullObject, node, run_id),
                make_confirm_message_received_fn_protobuf(
                    self._client.ConfirmMessageReceived, node, run_id
                ),
                return_type=Message,
                initial_backoff=OBJECT_RETRY_S,
            )
            message.metadata.__dict__["_message_id"] = tree.object_id
            return message

    def push(self, reply: Message, seconds: float) -> None:
        """Send a reply; sending the same one again does no harm.

        Args:
            reply: made with ``reply_to`` the pulled message.
            seconds: how long the work took.

        Raises:
            RunNotRunning: nobody waits for it any more.
            TransportError: reconnect, then push the same reply again.
        """
        node = self._session()
        with self._mapped("sending a reply"), no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree = get_object_tree(reply)
            objects = get_all_nested_objects(reply)
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[seconds],
                )
            )
            push_objects(
                objects,
                make_push_object_fn_protobuf(
                    self._client.PushObject, node, reply.metadata.run_id, response.session_id
                ),
                object_ids_to_push=set(response.objects_to_push),
            )

    def close(self) -> bool:
        """Leave, if the SuperLink can still be told; tell whether it was."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        left = False
        if self._node is not None:
            try:
                with self._mapped("leaving"):
                    request = DeactivateNodeRequest(node_id=self._node.node_id)
                    self._client.DeactivateNode(request)
                    left = True
            except TransportError as error:
                _log.debug("leaving without goodbye: %s", error)
        self._node = None
        self._client.close()
        return left

    def _session(self) -> Node:
        """Return the node, unless the heartbeat found out that the session is over."""
        if self._node is None or self._heartbeat is None:
            raise TransportError("the connection to the SuperLink is not open")
        if self._heartbeat.failure is not None:
            raise TransportError(self._heartbeat.failure)
        return self._node

    def _register(self) -> None:
        """Make the key known; a SuperLink that knows it, or has node authentication, refuses."""
        try:
            with self._mapped("registering"):
                request = RegisterNodeFleetRequest(public_key=self._identity.public_pem)
                self._client.RegisterNode(request)
        except Refused as refusal:
            if refusal.code not in (
                ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE,
                ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED,
            ):
                raise

    def _activate(self) -> int:
        try:
            with self._mapped("activating"):
                request = ActivateNodeRequest(
                    public_key=self._identity.public_pem,
                    heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL,
                )
                return int(self._client.ActivateNode(request).node_id)
        except Refused as refusal:
            if refusal.code != ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                raise
            if self._take_over():
                assert self._known_node_id is not None
                return self._known_node_id
            raise

    def _take_over(self) -> bool:
        """Go on with the session that a crash cut off; tell whether the SuperLink agrees."""
        if self._known_node_id is None:
            return False
        try:
            self._send_heartbeat(Node(node_id=self._known_node_id))
        except TransportError:
            return False
        _log.warning(
            "taking over the session of node %d, which was never closed; if another device runs "
            "a copy of this state folder, give each its own",
            self._known_node_id,
        )
        return True

    def _send_heartbeat(self, node: Node | None = None) -> None:
        node = node or self._node
        with self._mapped("sending a heartbeat"):
            response = self._client.SendNodeHeartbeat(
                SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
            )
        if not response.success:
            raise Refused("the SuperLink does not know this node any more", code=401)

    @contextmanager
    def _mapped(self, doing: str) -> Iterator[None]:
        try:
            yield
        except TransportError:
            raise
        except httpx.HTTPStatusError as error:
            raise _map_status(error, self._address, doing) from error
        except (httpx.TransportError, ssl.SSLError, OSError) as error:
            raise TransportError(explain_unreachable(error, self._address, doing)) from error
        except Exception as error:
            # The boundary to Flower's internals: object stores, protobuf and inflating raise
            # many kinds of errors of their own; to the device all mean "reconnect and retry".
            raise TransportError(
                f"SuperLink {self._address}, {doing}: {type(error).__name__}: {error}"
            ) from error


class _VersionHeaders:
    """Tell the SuperLink Flower's version, as its own interceptor does, without ending us."""

    def __init__(self) -> None:
        metadata = RuntimeVersionMetadata.from_local_component("SuperNode")
        self._headers = dict(metadata.as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        add_headers(context.request, self._headers)
        return call_next(context)


def _map_status(error: httpx.HTTPStatusError, address: str, doing: str) -> TransportError:
    response = error.response
    status = response.status_code
    flower = FlowerError.from_json(response.text)
    code = flower.code if flower is not None else status
    where = f"SuperLink {address}, {doing}"
    if status == httpx.codes.UNAUTHORIZED:
        return Refused(f"{where}: {explain_unauthorized(response)}", code=status)
    if code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
        return RunNotRunning(f"{where}: the run has ended")
    if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return Refused(f"{where}: {explain_not_activated(code)}", code=code)
    said = f"{flower.message} (code {code})" if flower is not None else f"HTTP {status}"
    hint = "" if status < 500 else "; the error is on the server, its log says more"
    return Refused(f"{where}: {said}{hint}", code=code)
