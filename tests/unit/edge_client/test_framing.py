import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.framing import receive_frame, send_frame

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        right.settimeout(5)
        yield left, right


@given(
    st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(), st.none())),
    st.binary(max_size=1000),
)
def test_any_header_and_payload_come_through(header: dict[str, Any], payload: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        send_frame(left, header, payload)
        assert receive_frame(right) == (header, bytearray(payload))


def test_a_payload_larger_than_the_socket_buffer_comes_through(pair: Pair) -> None:
    payload = bytes(range(256)) * 40_000
    sender = threading.Thread(target=send_frame, args=(pair[0], {"n": 1}, payload))
    sender.start()
    assert receive_frame(pair[1]) == ({"n": 1}, bytearray(payload))
    sender.join()


def test_a_closed_connection_is_the_end_even_within_a_frame(pair: Pair) -> None:
    pair[0].sendall(b"\x00\x00\x00\x05")
    pair[0].close()
    with pytest.raises(EOFError):
        receive_frame(pair[1])


def test_lengths_are_checked_before_anything_is_allocated(pair: Pair) -> None:
    pair[0].sendall(b"\xff" * 12)
    with pytest.raises(ValueError, match="not one of ours"):
        receive_frame(pair[1])
