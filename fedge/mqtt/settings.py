"""How to reach a broker; devices and the cloud's side read the same keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedge.config import limited
from fedge.errors import ConfigError
from fedge.settings import TlsConfig, is_loopback, split_address

DAY_S = 86400
NEVER_S = 0xFFFFFFFF
"""A session with this expiry never ends."""


@dataclass(frozen=True)
class BrokerConfig:
    """A broker and who we are to it.

    Attributes:
        address: ``host:port``; empty switches MQTT off.
        client_id: names the session that the broker keeps while we are away, so it must stay
            the same and be nobody else's; empty derives one.
        username: empty for none.
        password_file: file whose first line is the password.
        keep_alive_s: a broker that is silent for longer is given up.
        session_expiry_s: how long the broker keeps our session, and queues for it, while we are
            away; 4294967295 for ever.
        reconnect_max_s: longest wait between two attempts.
        receive_maximum: messages that the broker may have under way to us, unacknowledged.
        tls: ``ca`` verifies the broker; ``cert`` and ``key`` are the client's certificate.
    """

    address: str = ""
    client_id: str = ""
    username: str = ""
    password_file: Path | None = None
    keep_alive_s: int = limited(30, ge=5, le=65535)
    session_expiry_s: int = limited(7 * DAY_S, ge=1, le=NEVER_S)
    reconnect_max_s: float = limited(30.0, gt=0)
    receive_maximum: int = limited(256, ge=1, le=65535)
    tls: TlsConfig = field(default_factory=TlsConfig)

    def __post_init__(self) -> None:
        """Refuse plaintext beyond loopback, and half of what identifies us."""
        if self.password_file is not None and not self.username:
            raise ConfigError("is empty, and a password_file is given", key="username")
        if self.password_file is not None and not self.password_file.is_file():
            raise ConfigError(f"no such file: {self.password_file}", key="password_file")
        if self.tls.cert is not None and self.tls.ca is None:
            raise ConfigError("is needed beside a client certificate", key="tls.ca")
        if not self.address:
            return
        split_address(self.address, "address")
        if not is_loopback(self.address) and self.tls.ca is None:
            raise ConfigError(f"{self.address} is not on loopback: set tls.ca", key="address")
