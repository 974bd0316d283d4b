from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.config import build
from fedge.errors import ConfigError
from fedge.settings import Hyperparameters, TlsConfig, is_loopback, split_address


def test_the_digest_of_hyperparameters_changes_with_each_value() -> None:
    base = Hyperparameters()
    others = [
        replace(base, learning_rate=0.1),
        replace(base, momentum=0.1),
        replace(base, local_epochs=2),
        replace(base, batch_size=33),
        replace(base, clip_norm=2.0),
        replace(base, weight_decay=1e-5),
        replace(base, client_term="fedprox"),
        replace(base, proximal_mu=0.1),
        replace(base, optimizer="adam"),
        replace(base, personal_layers=("head.*",)),
    ]
    assert len(others) == len(fields(Hyperparameters))
    assert len({hyper.digest for hyper in [base, *others]}) == len(others) + 1
    assert Hyperparameters().digest == base.digest


def test_without_personal_layers_the_digest_is_what_it_was_before_there_were_any() -> None:
    """Replies that a device stored then answer the same rounds still."""
    digest = "0f145ab8ee61687b9c72bf2d27a215ea6474528111269f4ee22b943adec81018"
    assert Hyperparameters().digest == digest


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("client_term", "moon", "one of none, fedprox, scaffold, got 'moon'"),
        ("client_term", 3, "must be text"),
        ("proximal_mu", -0.1, ">= 0"),
        ("weight_decay", -1e-5, ">= 0"),
    ],
)
def test_a_client_term_or_strength_that_cannot_be_is_refused_by_its_key(
    name: str, value: object, text: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^train\.{name}: .*{text}"):
        build(Hyperparameters, {name: value}, "train.")


@pytest.mark.parametrize("given_name", ["cert", "key"])
def test_half_a_key_pair_is_refused(tmp_path: Path, given_name: str) -> None:
    file = tmp_path / "file.pem"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"^cert: cert and key belong together"):
        build(TlsConfig, {given_name: str(file)})


def test_a_missing_pem_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tls\.ca: no such file: .*absent\.pem"):
        build(TlsConfig, {"ca": str(tmp_path / "absent.pem")}, "tls.")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:9092",
        "localhost:1",
        "[::1]:9092",
        "http://127.0.0.1:9092",
        "127.0.0.1",
        "localhost",
        "::1",
        "[::1]",
        "https://localhost:5",
    ],
)
def test_loopback_is_this_machine(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1:9092",
        "0.0.0.0:9092",
        "[::]:9092",
        "127.0.0.1.example.com:1",
        "example.com",
        "",
        "localhost.example.com:80",
        "[::1].example.com:80",
        "[2001:db8::1]:80",
        "localhost@evil:1",
        "[::1",
        ":::1:5",
        "::1]:80",
    ],
)
def test_everything_else_is_not(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:80", ("localhost", 80)),
        ("[::1]:65535", ("::1", 65535)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
    ],
)
def test_an_address_is_split_into_host_and_port(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address, "address") == expected


@pytest.mark.parametrize("address", ["", "host", ":80", "host:", "host:x", "host:65536", "host:-1"])
def test_an_address_of_another_form_is_refused_with_its_key(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^registry\.address: must be host:port"):
        split_address(address, "registry.address")


@given(st.text(max_size=12))
def test_any_port_is_read_or_refused(port: str) -> None:
    if port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535:
        assert split_address(f"host:{port}", "key")[1] == int(port)
    elif ":" not in port:
        with pytest.raises(ConfigError):
            split_address(f"host:{port}", "key")


def test_a_superscript_port_is_refused() -> None:
    with pytest.raises(ConfigError):
        split_address("host:8²", "key")


def test_a_momentum_that_adam_would_not_use_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^momentum: 'adam' has its own, so 0.9 would do nothing"
    ):
        Hyperparameters(optimizer="adam", momentum=0.9)


def test_an_optimizer_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of sgd, adam"):
        build(Hyperparameters, {"optimizer": "lion"})
