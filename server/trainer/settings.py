"""Configuration of ``fedge-trainer``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedge.config import limited
from fedge.errors import ConfigError
from fedge.settings import TaskConfig, TlsConfig, is_loopback, split_address
from server.trainer.parallel.degrees import MeshConfig


@dataclass(frozen=True)
class TrainerConfig:
    """Everything that the cloud trainer reads.

    Attributes:
        address: where rank 0 serves.
        token_file: file whose first line callers must present; needed beyond loopback.
        max_model_bytes: largest model accepted.
        collective_timeout_s: seconds a rank waits for the others within a step.
        device: ``auto`` is a GPU for each process where there is one, else the CPU.
        checkpoint_dir: folder that all ranks see, of this trainer alone; without one a refinement
            that was cut short begins anew.
        checkpoint_interval_s: seconds between checkpoints within a refinement.
    """

    address: str = "127.0.0.1:9094"
    token_file: Path | None = None
    max_model_bytes: int = limited(4 * 1024**3, ge=4)
    num_threads: int = limited(1, ge=1)
    collective_timeout_s: float = limited(60.0, gt=0)
    device: str = limited("auto", choices=("auto", "cpu", "cuda"))
    checkpoint_dir: Path | None = None
    checkpoint_interval_s: float = limited(30.0, gt=0)
    task: TaskConfig = field(default_factory=TaskConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)

    def __post_init__(self) -> None:
        """Refuse plaintext or open service beyond loopback."""
        split_address(self.address, "address")
        if not is_loopback(self.address) and (self.tls.cert is None or self.token_file is None):
            raise ConfigError(
                f"{self.address} is not on loopback: set tls.cert, tls.key and token_file",
                key="address",
            )
