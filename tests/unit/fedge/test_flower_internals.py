"""The contract test: every undocumented name and signature of Flower that fedge relies on."""

import importlib
import inspect
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import flwr.app
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.superlink.grid import http_grid

from fedge import heartbeat
from fedge.errors import ConfigError, TransportError
from fedge.flower_internals import (
    TESTED_VERSION,
    NodeConnection,
    NodeIdentity,
    quicken_grid,
    set_task_identity,
)
from fedge.heartbeat import Heartbeat
from fedge.superlink_errors import Refused, RunNotRunning

SIGNATURES = {
    "flwr.app.message.message:remove_content_from_message": ["message"],
    "flwr.common.constant:HEARTBEAT_DEFAULT_INTERVAL": None,
    "flwr.common.constant:ErrorCode.CLIENT_APP_RAISED_EXCEPTION": None,
    "flwr.common.serde:message_to_proto": ["message"],
    "flwr.common.serde:message_from_proto": ["message_proto"],
    "flwr.proto.message_pb2:Message": None,
    "flwr.proto.fleet_pb2:RegisterNodeFleetRequest": None,
    "flwr.proto.fleet_pb2:ActivateNodeRequest": None,
    "flwr.proto.fleet_pb2:DeactivateNodeRequest": None,
    "flwr.proto.fleet_pb2:PullMessagesRequest": None,
    "flwr.proto.fleet_pb2:PushMessagesRequest": None,
    "flwr.proto.heartbeat_pb2:SendNodeHeartbeatRequest": None,
    "flwr.proto.node_pb2:Node": None,
    "flwr.supercore.error:ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE": None,
    "flwr.supercore.error:ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED": None,
    "flwr.supercore.error:ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED": None,
    "flwr.supercore.error:ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED": None,
    "flwr.supercore.error:FlowerError.from_json": ["value"],
    "flwr.supercore.inflatable.inflatable_object:get_all_nested_objects": ["obj"],
    "flwr.supercore.inflatable.inflatable_object:get_object_tree": ["obj"],
    "flwr.supercore.inflatable.inflatable_object:no_object_id_recompute": [],
    "flwr.supercore.inflatable.inflatable_protobuf_utils:make_pull_object_fn_protobuf": [
        "pull_object_protobuf",
        "node",
        "run_id",
    ],
    "flwr.supercore.inflatable.inflatable_protobuf_utils:make_push_object_fn_protobuf": [
        "push_object_protobuf",
        "node",
        "run_id",
        "session_id",
    ],
    "flwr.supercore.inflatable.inflatable_protobuf_utils:"
    "make_confirm_message_received_fn_protobuf": [
        "confirm_message_received_protobuf",
        "node",
        "run_id",
    ],
    "flwr.supercore.inflatable.inflatable_utils:pull_and_inflate_object_from_tree": [
        "object_tree",
        "pull_object_fn",
        "confirm_object_received_fn",
        "return_type",
        "initial_backoff",
    ],
    "flwr.supercore.inflatable.inflatable_utils:pull_objects": [
        "object_ids",
        "pull_object_fn",
        "initial_backoff",
    ],
    "flwr.superlink.grid.http_grid:pull_objects": None,
    "flwr.supercore.inflatable.inflatable_utils:push_objects": [
        "objects",
        "push_object_fn",
        "object_ids_to_push",
    ],
    "flwr.supercore.interceptors.http.utils:add_headers": None,
    "flwr.supercore.primitives.asymmetric:bytes_to_private_key": ["private_key_bytes"],
    "flwr.supercore.primitives.asymmetric:generate_key_pairs": [],
    "flwr.supercore.primitives.asymmetric:private_key_to_bytes": ["private_key"],
    "flwr.supercore.primitives.asymmetric:public_key_to_bytes": ["public_key"],
    "flwr.supercore.runtime_version_compatibility:RuntimeVersionMetadata.from_local_component": [
        "component_name"
    ],
    "flwr.supercore.runtime_version_compatibility:RuntimeVersionMetadata.as_metadata": ["self"],
    "flwr.supercore.task_identity:TaskIdentity": None,
    "flwr.supernode.fleet_http_client:FleetHttpClient.from_server_address": [
        "server_address",
        "insecure",
        "root_certificates",
        "interceptors",
    ],
    "flwr.supernode.fleet_http_client:FleetHttpClient.close": ["self"],
    **{
        f"flwr.supernode.fleet_http_client:FleetHttpClient.{name}": ["self", "request"]
        for name in (
            "RegisterNode",
            "ActivateNode",
            "DeactivateNode",
            "SendNodeHeartbeat",
            "PullMessages",
            "PushMessages",
            "PullObject",
            "PushObject",
            "ConfirmMessageReceived",
        )
    },
    "flwr.supernode.node_auth_http_interceptor:NodeAuthHttpInterceptor": [
        "private_key",
        "public_key",
    ],
}
ADVICE = (
    f"fedge.flower_internals was tested with flwr {TESTED_VERSION}: adapt it there, or install "
    f"flwr {TESTED_VERSION}"
)


@pytest.mark.parametrize(("name", "arguments"), SIGNATURES.items(), ids=list(SIGNATURES))
def test_flower_still_has_what_fedge_relies_on(name: str, arguments: list[str] | None) -> None:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{name} is gone ({error}); {ADVICE}")
    if arguments is None:
        return
    has = inspect.signature(found).parameters
    missing = [argument for argument in arguments if argument not in has]
    assert not missing, f"{name} no longer takes {missing}; {ADVICE}"
    required = [n for n, p in has.items() if p.default is p.empty and p.kind != p.VAR_KEYWORD]
    assert set(required) <= set(arguments), f"{name} wants {required}; {ADVICE}"


def test_instruction_messages_can_be_made_once_the_task_identity_is_set() -> None:
    set_task_identity(run_id=7, node_id=3)
    message = flwr.app.Message(flwr.app.RecordDict(), 11, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, 3), ADVICE


def test_message_id_is_kept_where_we_set_it() -> None:
    set_task_identity(run_id=7, node_id=3)
    message = flwr.app.Message(flwr.app.RecordDict(), 11, "train")
    message.metadata.__dict__["_message_id"] = "abc"
    assert message.metadata.message_id == "abc", ADVICE
    assert flwr.app.Message(flwr.app.RecordDict(), reply_to=message).metadata.reply_to_message_id


def test_identity_survives_its_pem() -> None:
    identity = NodeIdentity.generate()
    assert NodeIdentity.from_pem(identity.to_pem()).public_pem == identity.public_pem


def test_what_is_not_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a private key"):
        NodeIdentity.from_pem(b"hello")


def test_unreachable_superlink_is_a_transport_error_that_says_what_to_check() -> None:
    connection = NodeConnection("127.0.0.1:1", NodeIdentity.generate())
    with pytest.raises(TransportError, match=r"cannot be reached.*node\.superlink"):
        connection.open()
    assert connection.close() is False


def answer_all(status: int, body: bytes, date: float) -> HTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response_only(status)
            self.send_header("date", formatdate(date, usegmt=True))
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("status", "body", "skew_s", "kind", "text"),
    [
        (401, b"", -900.0, Refused, r"clock is (899|900|901) s behind"),
        (401, b"", 60.0, Refused, r"clock is (59|60|61) s ahead"),
        (401, b"", 0.0, Refused, "does not know this node"),
        (500, b"boom", 0.0, Refused, "HTTP 500; the error is on the server"),
        (403, b'{"code": 2007, "detail": "no"}', 0.0, RunNotRunning, "run has ended"),
        (412, b'{"code": 2004, "detail": "no"}', 0.0, Refused, "killed less than a minute ago"),
    ],
)
def test_answers_that_are_no_success_are_explained(
    status: int, body: bytes, skew_s: float, kind: type[TransportError], text: str
) -> None:
    server = answer_all(status, body, time.time() - skew_s)
    try:
        connection = NodeConnection(f"127.0.0.1:{server.server_port}", NodeIdentity.generate())
        with pytest.raises(kind, match=text):
            connection.open()
    finally:
        server.shutdown()
        server.server_close()


def test_heartbeat_survives_outages_and_errors_and_ends_when_the_node_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "WAIT_S", 0.001)
    monkeypatch.setattr(heartbeat, "RETRY_S", 0.001)
    answers = [TransportError("gone"), Refused("HTTP 500", code=500), None]
    forgotten = threading.Event()

    def send() -> None:
        if not answers:
            forgotten.set()
            raise Refused("unknown node", code=401)
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    beat = Heartbeat(send)
    beat.start()
    assert forgotten.wait(5)
    deadline = time.monotonic() + 5
    while beat.failure is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert beat.failure == "unknown node"


def pulled_by_the_grid(monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes]) -> object:
    """Let the ServerApp's grid pull objects whose bytes are these, the message last."""
    monkeypatch.setattr(http_grid, "pull_objects", None)
    quicken_grid()
    pull: Any = vars(http_grid)["pull_objects"]
    return pull(list(contents), contents.__getitem__)


def test_a_reply_that_cannot_be_read_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for content in (b"", b"Message 0 5\x00junk!", b"Nonsense 0 4\x00junk", b"\xff" * 40):
        with pytest.raises(ObjectPullError, match="cannot be read"):
            pulled_by_the_grid(monkeypatch, {"a" * 64: content})


def test_a_reply_that_can_be_read_is_pulled_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    record = ArrayRecord({"w": Array(np.arange(3, dtype=np.float32))})
    contents = {name: o.deflate() for name, o in get_all_nested_objects(record).items()}
    assert pulled_by_the_grid(monkeypatch, contents) == contents
