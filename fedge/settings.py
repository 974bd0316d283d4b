"""Configuration sections that more than one role reads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedge.config import limited
from fedge.errors import ConfigError

CLIENT_TERMS = ("none", "fedprox", "scaffold")
"""Names that `fedge.training.terms` registers; they stand here for those without torch."""

OPTIMIZERS = ("sgd", "adam")
"""Names that `fedge.training.sgd.make_optimizer` takes."""

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class TaskConfig:
    """What is learnt: ``module:attribute``, and options for it."""

    name: str = "fedge.tasks.digits:Digits"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hyperparameters:
    """How a client trains in one round; the server sends them with the weights.

    Attributes:
        momentum: of ``sgd``.
        clip_norm: per-example L2 clipping norm of DP-SGD; unused without DP.
        weight_decay: this times the weights is added to each gradient.
        client_term: what else is added to each gradient against client drift.
        proximal_mu: strength of the pull to the global model; used by ``fedprox``.
        optimizer: ``sgd``, or ``adam`` with betas 0.9 and 0.999; its state starts anew each round.
        personal_layers: patterns of the parameters that stay on each client, such as ``head.*``.
    """

    learning_rate: float = limited(1.0, gt=0)
    momentum: float = limited(0.0, ge=0, lt=1)
    local_epochs: int = limited(4, ge=1)
    batch_size: int = limited(128, ge=1)
    clip_norm: float = limited(1.0, gt=0)
    weight_decay: float = limited(0.0, ge=0)
    client_term: str = limited("none", choices=CLIENT_TERMS)
    proximal_mu: float = limited(0.01, ge=0)
    optimizer: str = limited("sgd", choices=OPTIMIZERS)
    personal_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a momentum that would not be used."""
        if self.optimizer != "sgd" and self.momentum > 0:
            raise ConfigError(
                f"{self.optimizer!r} has its own, so {self.momentum:g} would do nothing: set it "
                'to 0, or take optimizer = "sgd"',
                key="momentum",
            )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the values: part of the key of a round."""
        values = asdict(self)
        if not self.personal_layers:  # as before there were any, so that stored replies answer
            del values["personal_layers"]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class PrivacyConfig:
    """The privacy a device insists on; its own configuration decides, never the server's.

    Attributes:
        epsilon: ε of all rounds together, for each example of the device.
        noise_multiplier: noise standard deviation in clipping norms; 0 chooses the least noise
            that lets the planned rounds fit the budget.
        declared_examples: public number of examples to plan and weight with; 0 takes the
            largest power of two that does not exceed the true number.
        share_counts: send the true number of examples instead; it is then public.
    """

    enabled: bool = True
    epsilon: float = limited(8.0, gt=0)
    delta: float = limited(1e-5, gt=0, lt=1)
    noise_multiplier: float = limited(0.0, ge=0)
    declared_examples: int = limited(0, ge=0)
    share_counts: bool = False


@dataclass(frozen=True)
class TlsConfig:
    """PEM files; all empty means plaintext, which is allowed on loopback only.

    Attributes:
        ca: certificate authority that signed the other side's certificate.
        cert, key: this side's certificate and private key (servers).
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        """Refuse half a pair and files that are not there."""
        if (self.cert is None) != (self.key is None):
            raise ConfigError("cert and key belong together: give both or neither", key="cert")
        for name in ("ca", "cert", "key"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ConfigError(f"no such file: {path}", key=name)


def is_loopback(address: str) -> bool:
    """Tell whether ``host:port`` (or a bare host) is this machine's loopback."""
    host = address.removeprefix("http://").removeprefix("https://")
    return host == "::1" or host in LOOPBACK_HOSTS or host.rpartition(":")[0] in LOOPBACK_HOSTS


def split_address(address: str, key: str) -> tuple[str, int]:
    """Return host and port of ``host:port``.

    Raises:
        ConfigError: it is not of that form; names the key.
    """
    host, sign, port = address.rpartition(":")
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not sign or not host or not digits or int(port) > 65535:
        raise ConfigError(f"must be host:port, got {address!r}", key=key)
    return host.strip("[]"), int(port)
