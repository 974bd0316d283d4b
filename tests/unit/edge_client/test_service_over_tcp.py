from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest

from edge_client.inference import Serving
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService, serve, serve_address
from edge_client.settings import InferenceConfig, StoreConfig
from edge_client.tensors import make_tensor
from fedge.channels import client_channel
from fedge.errors import ConfigError
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc
from tests.tls_files import make_tls
from tests.unit.edge_client.engines import make_engine

LOOPBACK = InferenceConfig(address="127.0.0.1:0")


@contextmanager
def served(folder: Path, config: InferenceConfig) -> Iterator[int]:
    """Serve a digits model on a socket and on an address; yield the port."""
    with SampleDatabase(folder / "samples.db", StoreConfig()) as samples:
        service = InferenceService(Serving(make_engine(1)), samples, DeviceStatus)
        local = serve(service, folder / "inference.sock", config)
        try:
            remote, port = serve_address(service, config)
            yield port
            remote.stop(0).wait()
        finally:
            local.stop(0).wait()


def predict(address: str, tls: TlsConfig, token: str | None = None) -> Any:
    request = inference_pb2.PredictRequest(input=make_tensor(np.zeros(64, np.float32)))
    with client_channel(address, tls, token) as channel:
        return inference_pb2_grpc.InferenceStub(channel).Predict(request, timeout=20)


def code_of(address: str, tls: TlsConfig, token: str | None = None) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        predict(address, tls, token)
    return cast("grpc.Call", caught.value).code()


def test_the_address_answers_beside_the_socket(tmp_path: Path) -> None:
    with served(tmp_path, LOOPBACK) as port:
        for address in (f"127.0.0.1:{port}", f"unix:{tmp_path / 'inference.sock'}"):
            assert predict(address, TlsConfig()).model.round == 1


def test_over_tls_only_callers_with_the_token_are_answered(tmp_path: Path) -> None:
    server, client = make_tls(tmp_path)
    token_file = tmp_path / "token"
    token_file.write_text("s3cret\n")
    with served(tmp_path, replace(LOOPBACK, tls=server, token_file=token_file)) as port:
        address = f"127.0.0.1:{port}"
        assert predict(address, client, "s3cret").model.round == 1
        assert code_of(address, client) == grpc.StatusCode.UNAUTHENTICATED
        assert code_of(address, client, "wrong") == grpc.StatusCode.UNAUTHENTICATED
        assert code_of(address, TlsConfig(), "s3cret") == grpc.StatusCode.UNAVAILABLE
        # The socket is its owner's alone and needs no token.
        assert predict(f"unix:{tmp_path / 'inference.sock'}", TlsConfig()).model.round == 1


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = replace(LOOPBACK, token_file=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"^inference\.token_file: "), served(tmp_path, config):
        pass
