"""Configuration of ``fedge-simulate``."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedge.config import limited
from fedge.settings import PrivacyConfig
from server.settings import ServerConfig
from simulation.devices.settings import DevicesConfig
from simulation.partition.settings import DataConfig


@dataclass(frozen=True)
class AttackConfig:
    """Clients that attack, to measure what a defence is worth.

    Attributes:
        name: one of `simulation.attacks.methods.attack_names`; ``none`` leaves all honest.
        fraction: share of all clients that is malicious, to the nearest whole number; who they
            are is drawn from the seed.
        num_classes: label-flip turns label y into ``num_classes - 1 - y``.
        factor: how many times as long as an honest update those of scale and gaussian are.
        ipm_epsilon: share of the mean update that inner-product manipulation sends backwards.
    """

    name: str = "none"
    fraction: float = limited(0.2, ge=0, lt=1)
    num_classes: int = limited(10, ge=2)
    factor: float = limited(20.0, gt=0)
    ipm_epsilon: float = limited(0.5, gt=0)


@dataclass(frozen=True)
class EngineConfig:
    """How the clients are run; but for rounding it changes no result.

    Attributes:
        cohorts: train whole cohorts in one call where the method allows it; else, and for
            colluding attackers and late updates, every client gets messages of its own.
        workers: processes that train side by side; 0 takes one a core, as far as the cohort has
            work for them.
        ray: address of a Ray cluster whose actors train instead; ``local`` starts one here.
        ray_cpus, ray_gpus: what each actor asks the cluster for.
        backend: what trains a cohort: ``auto`` measures shortly which is fastest.
        precision: of forward and backward passes, ``float32`` or ``bfloat16``.
        device: torch device of the ``stacked`` backend, such as ``cuda``.
        memory_mib: what one batched call may hold in each worker.
        state_limit_mib: what all clients may remember on disk, their ledgers apart.
    """

    cohorts: bool = True
    workers: int = limited(0, ge=0)
    ray: str = ""
    ray_cpus: float = limited(1.0, ge=0)
    ray_gpus: float = limited(0.0, ge=0)
    backend: str = "auto"
    precision: str = limited("float32", choices=("float32", "bfloat16"))
    device: str = "cpu"
    memory_mib: int = limited(256, ge=1)
    state_limit_mib: int = limited(4096, ge=1)


@dataclass(frozen=True)
class SimulateConfig:
    """A federation in one process: the server's own configuration, and its clients.

    Attributes:
        holdout_fraction: share of each client's examples that is never trained on.
        server: as in ``fedge-server``; ``server.seed`` seeds everything, noise included, so
            the ε that is reported holds for the method and not for this run.
        privacy: what every simulated client insists on, malicious ones too.
        data: where the clients' examples come from and how they are split.
        devices: how fast and how reliable the clients are, in virtual time.
    """

    num_clients: int = limited(4, ge=1)
    holdout_fraction: float = limited(0.1, ge=0, lt=1)
    server: ServerConfig = field(default_factory=ServerConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    data: DataConfig = field(default_factory=DataConfig)
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
