"""Bearer tokens on gRPC calls: read from a file, sent by a client, checked by a server."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import grpc

from fedge.errors import ConfigError


def read_token(path: Path, key: str = "token_file") -> str:
    """Return the first line of a token file.

    Args:
        key: dotted key that names the file.

    Raises:
        ConfigError: it cannot be read, or its first line is empty or not printable ASCII.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", key=key) from error
    except UnicodeDecodeError:
        lines = []  # not chained: its text shows a part of the content
    token = lines[0].strip() if lines else ""
    if not token or not token.isprintable():
        raise ConfigError(
            f"the first line of {path} must be the token, in printable ASCII", key=key
        )
    return token


def bearer_token_interceptor(token: str) -> grpc.ServerInterceptor[Any, Any]:
    """Return an interceptor that refuses calls without this token as UNAUTHENTICATED."""
    return _TokenCheck(token)


def with_token(channel: grpc.Channel, token: str) -> grpc.Channel:
    """Return the channel sending this token with each call."""
    return grpc.intercept_channel(channel, _TokenSender(token))


class _TokenCheck(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Lets a call pass only with ``authorization: Bearer <token>``."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        found = dict(handler_call_details.invocation_metadata).get("authorization", "")
        presented = found if isinstance(found, bytes) else found.encode()
        if hmac.compare_digest(presented, self._expected):
            return continuation(handler_call_details)
        # On the wire all kinds of call look alike; this kind reads no request before it answers.
        return grpc.stream_stream_rpc_method_handler(_refuse_token)


def _refuse_token(_requests: Iterator[Any], context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")
    raise AssertionError("abort raises")


class _CallDetails(grpc.ClientCallDetails):
    """Details of a call with other metadata."""

    def __init__(
        self, details: grpc.ClientCallDetails, metadata: tuple[tuple[str, str | bytes], ...]
    ) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = metadata
        self.credentials = details.credentials
        self.wait_for_ready = getattr(details, "wait_for_ready", None)
        self.compression = getattr(details, "compression", None)


class _TokenSender(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Sends the token with each call, on plaintext loopback too (gRPC's own needs TLS)."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def _send(self, continuation: Any, details: grpc.ClientCallDetails, request: Any) -> Any:
        metadata = (*(details.metadata or ()), self._entry)
        return continuation(_CallDetails(details, metadata), request)

    intercept_unary_unary: Any = _send
    intercept_unary_stream: Any = _send
    intercept_stream_unary: Any = _send
    intercept_stream_stream: Any = _send
