"""Frames between the daemon and its training process: a JSON header and raw bytes, no pickle."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

_LENGTHS = struct.Struct(">IQ")
MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_PAYLOAD_BYTES = 16 * 1024**3


def send_frame(
    connection: socket.socket, header: Mapping[str, Any], payload: bytes | memoryview = b""
) -> None:
    """Send one frame whole.

    Raises:
        OSError: the other side is gone.
    """
    text = json.dumps(header).encode()
    size = memoryview(payload).nbytes
    connection.sendall(_LENGTHS.pack(len(text), size) + text)
    if size:
        connection.sendall(payload)


def receive_frame(connection: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """Return the next frame's header and payload.

    Raises:
        EOFError: the other side closed, between frames or within one.
        OSError: it broke, or the socket's timeout passed.
        ValueError: what came is not a frame.
    """
    header_size, payload_size = _LENGTHS.unpack(_receive(connection, _LENGTHS.size))
    if header_size > MAX_HEADER_BYTES or payload_size > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame of {header_size} + {payload_size} bytes is not one of ours")
    header = json.loads(_receive(connection, header_size))
    if not isinstance(header, dict):
        raise ValueError(f"a frame's header is a {type(header).__name__}, not an object")
    return header, _receive(connection, payload_size)


def _receive(connection: socket.socket, size: int) -> bytearray:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise EOFError("the other side closed the connection")
        view = view[count:]
    return content
