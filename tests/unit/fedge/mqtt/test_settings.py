from pathlib import Path

import pytest

from fedge.errors import ConfigError
from fedge.mqtt.settings import BrokerConfig
from fedge.settings import TlsConfig


@pytest.mark.parametrize("address", ["broker.example:1883", "10.0.0.7:8883"])
def test_plaintext_beyond_loopback_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set tls\.ca"):
        BrokerConfig(address=address)
    ca = tmp_path / "ca.pem"
    ca.touch()
    assert BrokerConfig(address=address, tls=TlsConfig(ca=ca)).address == address


def test_half_of_what_identifies_us_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    with pytest.raises(ConfigError, match="no such file"):
        BrokerConfig(username="u", password_file=secret)
    secret.touch()
    with pytest.raises(ConfigError, match="username"):
        BrokerConfig(password_file=secret)
    with pytest.raises(ConfigError, match=r"tls\.ca"):
        BrokerConfig(tls=TlsConfig(cert=secret, key=secret))


def test_an_address_needs_a_port() -> None:
    with pytest.raises(ConfigError, match="host:port"):
        BrokerConfig(address="localhost")
