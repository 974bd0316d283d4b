"""The one place that opens gRPC channels and server addresses and maps gRPC's errors.

An address is ``host:port``, or ``unix:/path`` for a Unix socket that only its owner may open.
Plaintext stays on loopback and on Unix sockets; beyond them TLS is needed.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc
from grpc import aio

from fedge.chunks import iter_chunks as iter_chunks
from fedge.chunks import join_chunks as join_chunks
from fedge.errors import ConfigError, DeadlineExceeded, ProtocolMismatch, TransportError
from fedge.protocol import PROTOCOL_VERSION
from fedge.settings import TlsConfig, is_loopback, split_address
from fedge.tokens import bearer_token_interceptor as bearer_token_interceptor
from fedge.tokens import read_token as read_token
from fedge.tokens import with_token

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
UNIX_PREFIX = "unix:"
MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its closing zero

_SEND_SIZE = ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)
_RECEIVE_SIZE = ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)
# Pings find a peer that vanished behind a NAT while a stream was idle.
_CLIENT_OPTIONS = (
    _SEND_SIZE,
    _RECEIVE_SIZE,
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
# Without so_reuseport=0 two servers share one port silently.
_SERVER_OPTIONS = (
    _SEND_SIZE,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
# Finds watchers that vanished without a word.
_PING_OPTIONS = (("grpc.keepalive_time_ms", 60_000), ("grpc.keepalive_timeout_ms", 20_000))


def client_channel(address: str, tls: TlsConfig, token: str | None = None) -> grpc.Channel:
    """Return a channel that connects when it is first used; the caller closes it.

    Raises:
        ConfigError: the address is malformed, or it is not on this machine and ``tls.ca`` is
            not set.
    """
    local = address.startswith(UNIX_PREFIX) or is_loopback(address)
    options = [*_CLIENT_OPTIONS, *([("grpc.enable_http_proxy", 0)] if local else [])]
    if address.startswith(UNIX_PREFIX):
        _socket_path(address)
        channel = grpc.insecure_channel(address, options)
    else:
        split_address(address, "address")
        if tls.ca is not None:
            channel = grpc.secure_channel(address, _client_credentials(tls), options)
        elif local:
            channel = grpc.insecure_channel(address, options)
        else:
            raise ConfigError(f"{address} is not on loopback: set tls.ca", key="address")
    return channel if token is None else with_token(channel, token)


def make_server(
    num_threads: int,
    *,
    interceptors: Sequence[grpc.ServerInterceptor[Any, Any]] = (),
    max_concurrent: int | None = None,
    max_request_bytes: int = MAX_MESSAGE_BYTES,
) -> grpc.Server:
    """Return a server without addresses.

    Args:
        num_threads: handlers that run at once; a stream holds one as long as it lasts.
        interceptors: such as that of `bearer_token_interceptor`.
        max_concurrent: calls running and waiting; what comes beyond is refused at once with
            RESOURCE_EXHAUSTED. None sets no bound.
        max_request_bytes: a larger request is refused with RESOURCE_EXHAUSTED.
    """
    return grpc.server(
        ThreadPoolExecutor(num_threads, thread_name_prefix="grpc"),
        interceptors=list(interceptors),
        options=(*_SERVER_OPTIONS, ("grpc.max_receive_message_length", max_request_bytes)),
        maximum_concurrent_rpcs=max_concurrent,
    )


def make_async_server(*, max_concurrent: int) -> aio.Server:
    """Return a server without addresses for the event loop that is running.

    A waiting stream costs it a coroutine instead of a thread.

    Args:
        max_concurrent: calls at once; one more is refused with RESOURCE_EXHAUSTED.
    """
    return aio.server(
        options=(*_SERVER_OPTIONS, _RECEIVE_SIZE, *_PING_OPTIONS),
        maximum_concurrent_rpcs=max_concurrent,
    )


def add_address(
    server: grpc.Server | aio.Server, address: str, tls: TlsConfig, *, key: str = "address"
) -> int:
    """Bind the server to an address and return its port (of a Unix socket: 1).

    Call it before other threads create files: a Unix socket gets its mode 0600 by the umask of
    the process, so that nobody can connect in between.

    Args:
        key: dotted key of the configuration that names the address.

    Raises:
        ConfigError: the address is taken, malformed or not of this machine; or a Unix socket's
            path is too long or served by another process.
    """
    if address.startswith(UNIX_PREFIX):
        return _add_socket(server, address, key)
    host, port = split_address(address, key)
    if tls.cert is None and not is_loopback(address):
        raise ConfigError(f"{address} is not on loopback: set tls.cert and tls.key", key=key)
    _check_port(address, host, port, key)
    try:
        if tls.cert is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, _server_credentials(tls))
    except RuntimeError as error:
        reason = "is the port taken" if tls.cert is None else "is the port taken or tls.cert broken"
        raise ConfigError(f"cannot serve on {address}: {reason}?", key=key) from error


def map_rpc_error(error: grpc.RpcError, address: str = "the other side") -> TransportError:
    """Return fedge's error for one of gRPC, saying who failed and what to do."""
    call = cast("Any", error)  # what grpc raises is a grpc.Call too; its stubs do not say so
    code = call.code() if isinstance(call, grpc.Call) else None
    detail = str(call.details() if isinstance(call, grpc.Call) else error)[:500]
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"{address} did not answer in time: look whether it is overloaded, or raise the "
                "deadline"
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return ProtocolMismatch(
                f"{address} speaks another protocol ({detail}); this side speaks version "
                f"{PROTOCOL_VERSION}: bring both to the same release of fedge"
            )
        case grpc.StatusCode.UNAVAILABLE:
            return TransportError(
                f"{address} cannot be reached ({detail}): check that it is running, that the "
                "address is right and that both sides agree on TLS"
            )
        case grpc.StatusCode.UNAUTHENTICATED:
            return TransportError(
                f"{address} refused the token: give both sides the same token_file"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return TransportError(
                f"{address} has no room for this ({detail}): send less at once or try later"
            )
    name = "no status" if code is None else code.name
    return TransportError(f"{address} answered {name}: {detail or 'no details'}; see its log")


def _client_credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(_read(tls.ca), _read(tls.key), _read(tls.cert))


def _server_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    pair = (_read(tls.key) or b"", _read(tls.cert) or b"")
    return grpc.ssl_server_credentials(
        [pair], root_certificates=_read(tls.ca), require_client_auth=tls.ca is not None
    )


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", key="tls") from error


def _check_port(address: str, host: str, port: int, key: str) -> None:
    """Bind once ourselves: the operating system says why it fails, gRPC does not."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        hint = "end the process that uses the port or " if taken else ""
        raise ConfigError(
            f"cannot serve on {address}: {error.strerror}; {hint}choose another address",
            key=key,
        ) from error


def check_socket_path(path: Path, key: str) -> None:
    """Refuse a path that is too long for a Unix socket.

    Raises:
        ConfigError: it is; names the key.
    """
    _socket_path(f"{UNIX_PREFIX}{path}", key)


def _socket_path(address: str, key: str | None = None) -> Path:
    path = address.removeprefix(UNIX_PREFIX)
    length = len(os.fsencode(path))
    if not path or length > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the path of a Unix socket must have 1 to {MAX_SOCKET_PATH_BYTES} bytes, {path!r} "
            f"has {length}: choose a shorter one",
            key=key,
        )
    return Path(path)


def _add_socket(server: grpc.Server | aio.Server, address: str, key: str) -> int:
    path = _socket_path(address, key)
    if not path.parent.is_dir():  # gRPC would log lines of its own
        raise ConfigError(
            f"cannot serve on {path}: {path.parent} is not a folder; make it or choose another",
            key=key,
        )
    _remove_stale_socket(path, key)
    umask = os.umask(0o177)
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot serve on {path}: check that its folder exists and is writable", key=key
        ) from error
    finally:
        os.umask(umask)


def _remove_stale_socket(path: Path, key: str) -> None:
    """Remove a socket that nobody serves; gRPC itself would remove a live one too."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(
                f"{path} exists and is not a socket: move it or choose another path", key=key
            )
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except OSError as error:
        raise ConfigError(f"cannot serve on {path}: {error.strerror}", key=key) from error
    raise ConfigError(f"another daemon is serving on {path}: end it or choose another", key=key)
