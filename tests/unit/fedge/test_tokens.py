from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedge.channels import add_address, client_channel, make_server
from fedge.errors import ConfigError
from fedge.settings import TlsConfig
from fedge.tokens import bearer_token_interceptor, read_token


@pytest.fixture
def address() -> Iterator[str]:
    """Serve one method of each kind behind a token; each answers what it was sent."""
    handlers = {
        "One": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
        "Out": grpc.unary_stream_rpc_method_handler(lambda request, _: iter([request])),
        "In": grpc.stream_unary_rpc_method_handler(lambda requests, _: b"".join(requests)),
        "Both": grpc.stream_stream_rpc_method_handler(lambda requests, _: requests),
    }
    server = make_server(2, interceptors=[bearer_token_interceptor("s3cret")])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", handlers),))
    port = add_address(server, "127.0.0.1:0", TlsConfig())
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def call_all(channel: Any) -> Iterator[Any]:
    """Call each method and yield its answer, or the error it ended with."""
    calls: list[Any] = [
        lambda: channel.unary_unary("/Echo/One")(b"a", timeout=5),
        lambda: list(channel.unary_stream("/Echo/Out")(b"b", timeout=5)),
        lambda: channel.stream_unary("/Echo/In")(iter([b"c", b"d"]), timeout=5),
        lambda: list(channel.stream_stream("/Echo/Both")(iter([b"e"]), timeout=5)),
    ]
    for call in calls:
        try:
            yield call()
        except grpc.RpcError as error:
            yield error


def test_every_kind_of_call_passes_with_the_token(address: str) -> None:
    with client_channel(address, TlsConfig(), "s3cret") as channel:
        assert list(call_all(channel)) == [b"a", [b"b"], b"cd", [b"e"]]


@pytest.mark.parametrize("token", [None, "", "s3cre", "s3cret2", "S3cret"])
def test_no_kind_of_call_passes_without_it(address: str, token: str | None) -> None:
    with client_channel(address, TlsConfig(), token) as channel:
        for error in call_all(channel):
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            assert "s3cre" not in str(error)


def test_a_metadata_value_that_is_not_text_is_refused_too(address: str) -> None:
    channel: Any
    with client_channel(address, TlsConfig()) as channel:
        call = channel.unary_unary("/Echo/One")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=5, metadata=(("authorization-bin", b"Bearer s3cret\xff"),))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_the_token_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("abc \nsecond line\n")
    assert read_token(file) == "abc"


@pytest.mark.parametrize("content", [b"", b"\nabc", "schlüssel".encode(), b"a\x00b"])
def test_a_file_without_a_usable_token_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"token_file.*{file}") as caught:
        read_token(file)
    assert caught.value.__cause__ is None


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: No such file"):
        read_token(tmp_path / "none")
