import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedge.channels import (
    MAX_MESSAGE_BYTES,
    add_address,
    client_channel,
    make_server,
    map_rpc_error,
)
from fedge.errors import ConfigError, DeadlineExceeded, ProtocolMismatch, TransportError
from fedge.protocol import refusal
from fedge.settings import TlsConfig
from tests.tls_files import make_tls

PLAIN = TlsConfig()


class Servers:
    """Starts echo servers and stops them all."""

    def __init__(self) -> None:
        self.started: list[grpc.Server] = []
        self.release = threading.Event()

    def start(self, address: str, tls: TlsConfig = PLAIN) -> int:
        server = make_server(4)

        def old(_request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, refusal(7))

        def hang(request: bytes, _context: grpc.ServicerContext) -> bytes:
            self.release.wait(10)
            return request

        handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
            "Old": grpc.unary_unary_rpc_method_handler(old),
            "Hang": grpc.unary_unary_rpc_method_handler(hang),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", handlers),))
        port = add_address(server, address, tls)
        server.start()
        self.started.append(server)
        return port


@pytest.fixture
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.release.set()
    for server in servers.started:
        server.stop(0).wait()


def call(address: str, tls: TlsConfig = PLAIN, method: str = "Echo", **options: Any) -> Any:
    channel: Any  # the stubs of grpc want serializers that it does not
    with client_channel(address, tls) as channel:
        return channel.unary_unary(f"/S/{method}")(b"hello", timeout=options.get("timeout", 5))


def failure(address: str, tls: TlsConfig = PLAIN, method: str = "Echo", **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call(address, tls, method, **options)
    return map_rpc_error(caught.value, address)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_tcp_on_loopback_needs_no_tls(servers: Servers) -> None:
    port = servers.start("127.0.0.1:0")
    assert call(f"127.0.0.1:{port}") == b"hello"


def test_loopback_calls_ignore_a_configured_proxy(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    port = servers.start("127.0.0.1:0")
    assert call(f"127.0.0.1:{port}") == b"hello"


def test_a_unix_socket_is_open_to_its_owner_only(servers: Servers, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    servers.start(f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert call(f"unix:{path}") == b"hello"


def test_tls_is_spoken_and_verified(servers: Servers, tmp_path: Path) -> None:
    server_tls, client_tls = make_tls(tmp_path)
    port = servers.start("127.0.0.1:0", server_tls)
    assert call(f"127.0.0.1:{port}", client_tls) == b"hello"
    (tmp_path / "other").mkdir()
    _, stranger = make_tls(tmp_path / "other")
    assert "agree on TLS" in str(failure(f"127.0.0.1:{port}", stranger))
    assert "agree on TLS" in str(failure(f"127.0.0.1:{port}", PLAIN))


def test_a_server_with_a_ca_lets_only_its_clients_in(servers: Servers, tmp_path: Path) -> None:
    pair, authority = make_tls(tmp_path)
    both = TlsConfig(ca=authority.ca, cert=pair.cert, key=pair.key)
    port = servers.start("127.0.0.1:0", both)
    assert call(f"127.0.0.1:{port}", both) == b"hello"
    assert isinstance(failure(f"127.0.0.1:{port}", authority), TransportError)


def test_a_broken_certificate_is_a_config_error(servers: Servers, tmp_path: Path) -> None:
    server_tls, _ = make_tls(tmp_path)
    assert server_tls.cert is not None
    server_tls.cert.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"tls\.cert"):
        servers.start("127.0.0.1:0", server_tls)


@pytest.mark.parametrize("address", ["example.org:80", "10.0.0.1:80"])
def test_plaintext_beyond_loopback_is_refused_on_both_sides(address: str) -> None:
    with pytest.raises(ConfigError, match=r"set tls\.ca"):
        client_channel(address, PLAIN)
    with pytest.raises(ConfigError, match=r"set tls\.cert and tls\.key"):
        add_address(make_server(1), address, PLAIN)


def test_a_taken_port_is_named(servers: Servers) -> None:
    port = servers.start("127.0.0.1:0")
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: Address already in use; end the"):
        servers.start(f"127.0.0.1:{port}")


def test_a_host_that_is_not_this_machine_is_named(tmp_path: Path) -> None:
    server_tls, _ = make_tls(tmp_path)
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0: .*choose another address"):
        add_address(make_server(1), "192.0.2.1:0", server_tls)


def test_a_port_is_free_again_after_a_stop(servers: Servers) -> None:
    port = servers.start("127.0.0.1:0")
    call(f"127.0.0.1:{port}")
    servers.started.pop().stop(0).wait()
    assert servers.start(f"127.0.0.1:{port}") == port


def test_a_live_socket_is_left_alone_and_a_second_server_refused(
    servers: Servers, tmp_path: Path
) -> None:
    address = f"unix:{tmp_path / 's.sock'}"
    servers.start(address)
    with pytest.raises(ConfigError, match="another daemon is serving"):
        servers.start(address)
    assert call(address) == b"hello"


def test_a_stale_socket_is_replaced(servers: Servers, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    servers.start(f"unix:{path}")
    assert call(f"unix:{path}") == b"hello"


def test_a_file_that_is_not_a_socket_is_kept(servers: Servers, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="not a socket"):
        servers.start(f"unix:{path}")
    assert path.read_text() == "data"


def test_a_socket_in_a_missing_folder_is_a_config_error(servers: Servers, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none is not a folder"):
        servers.start(f"unix:{tmp_path / 'none' / 's.sock'}")


def test_socket_paths_may_have_107_bytes(servers: Servers, tmp_path: Path) -> None:
    def path_of(length: int) -> str:
        return str(tmp_path / ("s" * (length - len(str(tmp_path)) - 1)))

    servers.start(f"unix:{path_of(107)}")
    with pytest.raises(ConfigError, match=r"1 to 107 bytes.* has 108"):
        servers.start(f"unix:{path_of(108)}")
    with pytest.raises(ConfigError, match="has 108"):
        client_channel(f"unix:{path_of(108)}", PLAIN)


def test_an_unreachable_server_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    error = failure(address)
    assert type(error) is TransportError
    assert f"{address} cannot be reached" in str(error)


def test_a_late_answer_is_a_deadline_exceeded(servers: Servers) -> None:
    address = f"127.0.0.1:{servers.start('127.0.0.1:0')}"
    error = failure(address, method="Hang", timeout=0.2)
    assert isinstance(error, DeadlineExceeded)
    assert address in str(error)


@pytest.mark.parametrize("method", ["Old", "NoSuchMethod"])
def test_another_protocol_or_method_is_a_protocol_mismatch(servers: Servers, method: str) -> None:
    address = f"127.0.0.1:{servers.start('127.0.0.1:0')}"
    error = failure(address, method=method)
    assert isinstance(error, ProtocolMismatch)
    assert "same release" in str(error)


def test_a_message_over_the_limit_is_refused(servers: Servers) -> None:
    address = f"127.0.0.1:{servers.start('127.0.0.1:0')}"
    channel: Any
    with client_channel(address, PLAIN) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/S/Echo")(bytes(MAX_MESSAGE_BYTES + 1), timeout=5)
    assert "send less at once" in str(map_rpc_error(caught.value, address))


def test_an_error_without_status_is_mapped_too() -> None:
    assert "peer answered no status" in str(map_rpc_error(grpc.RpcError("odd"), "peer"))
