"""Addresses at which no cluster can be joined are refused at once, and say what to do."""

import socket
import sys
from collections.abc import Iterator

import pytest

from fedge.errors import ConfigError
from simulation.engine import ray_cluster
from simulation.engine.ray_cluster import RayCluster


@pytest.fixture
def listener() -> Iterator[str]:
    """Something that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refused(address: str) -> str:
    with pytest.raises(ConfigError) as caught:
        RayCluster(address)
    assert caught.value.key == "engine.ray"
    return str(caught.value)


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused(closed_port: int, scheme: str) -> None:
    address = f"{scheme}127.0.0.1:{closed_port}"
    text = refused(address)
    assert address in text
    assert "ray start --head" in text


def test_a_listener_that_is_not_ray_is_refused(
    listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_PROBE_S", 0.3)
    assert "not Ray" in refused(listener)


def test_auto_takes_the_address_of_the_environment(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    assert f"127.0.0.1:{closed_port}" in refused("auto")


@pytest.mark.parametrize("address", ["here", "http://127.0.0.1:80", "127.0.0.1:port", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    assert "host:port" in refused(address)


def test_without_ray_the_text_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'pip install "fedge[simulate]"' in refused("local")
