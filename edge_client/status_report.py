"""What ``fedge-edge status`` prints: the Status call of a daemon on this machine."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from edge_client.settings import EdgeConfig
from fedge.channels import UNIX_PREFIX, check_socket_path, client_channel, map_rpc_error
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

ANSWER_WITHIN_S = 5.0
EXIT_HEALTHY = 0
EXIT_UNHEALTHY = 1


def show_status(config: EdgeConfig, *, as_json: bool) -> int:
    """Print how the daemon of a configuration is; return the status to exit with.

    Raises:
        ConfigError: its socket cannot be used.
    """
    check_socket_path(config.socket_path, "inference.socket")
    address = f"{UNIX_PREFIX}{config.socket_path}"
    with client_channel(address, TlsConfig()) as channel:
        try:
            status = inference_pb2_grpc.InferenceStub(channel).Status(
                inference_pb2.StatusRequest(), timeout=ANSWER_WITHIN_S
            )
        except grpc.RpcError as error:
            problem = str(map_rpc_error(error, str(config.socket_path)))
            print(
                json.dumps({"healthy": False, "problem": problem})
                if as_json
                else f"not running, or not answering: {problem}"
            )
            return EXIT_UNHEALTHY
    if as_json:
        print(json.dumps(to_json(status), indent=2, sort_keys=True, ensure_ascii=False))
    else:
        _print_table(status)
    return EXIT_HEALTHY if status.healthy and not status.problem else EXIT_UNHEALTHY


def to_json(status: inference_pb2.StatusResponse) -> dict[str, Any]:
    """Return every field by its name in the protocol."""
    tree: dict[str, Any] = MessageToDict(
        status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # 64-bit numbers are text in protobuf's JSON, and what is not finite is none at all.
    for name in ("predictions", "predictions_failed", "samples_labelled", "samples_unlabelled"):
        tree[name] = int(tree[name])
    if "model" in tree:
        tree["model"]["round"] = int(tree["model"]["round"])
    tree["figures"] = {
        name: value if math.isfinite(value) else None for name, value in status.figures.items()
    }
    return tree


def _print_table(status: inference_pb2.StatusResponse) -> None:
    width = None if sys.stdout.isatty() else 120
    console = Console(width=width, highlight=False)
    table = Table("", "", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(status):
        table.add_row(name, value)
    console.print(table)


def _rows(status: inference_pb2.StatusResponse) -> Iterator[tuple[str, str]]:
    yield "healthy", "yes" if status.healthy else "no"
    yield "problem", status.problem or "none"
    if status.HasField("model"):
        yield "model", f"round {status.model.round}, {status.model.digest[:12]}"
    else:
        yield "model", "none yet"
    yield "predictions", f"{status.predictions} answered, {status.predictions_failed} failed"
    yield (
        "samples",
        f"{status.samples_labelled} labelled, {status.samples_unlabelled} without a label",
    )
    if status.HasField("epsilon"):
        left = status.figures.get("privacy_epsilon_left")
        of = "" if left is None else f" of {status.epsilon + left:g}"
        yield "privacy", f"ε {status.epsilon:.3f}{of} spent at δ = {status.delta:g}"
    yield "SuperLink", "connected" if status.connected else "not connected"
    for name, value in sorted(status.figures.items()):
        yield name, f"{value:,.0f}" if value.is_integer() else f"{value:,.3f}"
