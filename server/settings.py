"""Configuration of ``fedge-server`` and of the ServerApp it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from aggregation.codecs import make_codec
from fedge.config import limited
from fedge.errors import ConfigError
from fedge.settings import Hyperparameters, TaskConfig, TlsConfig, is_loopback, split_address
from server.contradictions import CHECKS
from server.mqtt.settings import AnnounceConfig
from server.tuner.settings import TunerConfig


@dataclass(frozen=True)
class RoundsConfig:
    """When a round begins and when it ends.

    Attributes:
        cohort_size: clients wanted a round; 0 asks every connected one.
        over_selection: ask this many times the cohort, so that stragglers cost nothing.
        quorum: fraction of the cohort whose updates suffice once ``deadline_s`` has passed; a
            round with fewer changes nothing. With the whole cohort in, a round ends at once.
        min_devices: the first round waits until this many are connected, saying for how many.
    """

    num_rounds: int = limited(10, ge=1)
    deadline_s: float = limited(60.0, gt=0)
    cohort_size: int = limited(0, ge=0)
    over_selection: float = limited(1.0, ge=1)
    quorum: float = limited(0.5, gt=0, le=1)
    min_devices: int = limited(1, ge=1)
    wait_for_devices_s: float = limited(600.0, gt=0)
    poll_interval_s: float = limited(0.05, gt=0)


@dataclass(frozen=True)
class AggregationConfig:
    """How updates travel, what of them is believed, and how they become the next global model.

    Attributes:
        aggregator: how updates become one; the default bounds each one's norm and weight.
        malicious_fraction: share of hostile updates that trimmed means, Krum and its kin allow
            for.
        norm_bound: L2 norm that bounded methods scale updates down to; 0 adapts it to the last
            round's median norm times ``bound_factor``.
        momentum: of ``fedavgm``; beta_1, beta_2, tau: of the adaptive optimisers.
        max_norm: L2 norm above which an update is refused; 0 allows any.
        max_examples: example weight above which an update is refused.
        max_staleness: rounds that an update may be late and still count, discounted; 0 drops
            late updates.
        num_clients: devices there are in all, for ``scaffold``; 0 takes those connected.
        codec: how devices encode their updates, such as ``int8`` or ``topk:0.05+f16``.
        downlink_codec: how the model's change is encoded for devices that hold its last version;
            empty sends whole weights always.
    """

    aggregator: str = "bounded-mean"
    malicious_fraction: float = limited(0.2, ge=0, lt=0.5)
    norm_bound: float = limited(0.0, ge=0)
    bound_factor: float = limited(1.0, gt=0)
    server_optimizer: str = "fedavg"
    learning_rate: float = limited(1.0, gt=0)
    momentum: float = limited(0.9, ge=0, lt=1)
    beta_1: float = limited(0.9, ge=0, lt=1)
    beta_2: float = limited(0.99, ge=0, lt=1)
    tau: float = limited(1e-3, gt=0)
    max_norm: float = limited(0.0, ge=0)
    max_examples: float = limited(1e6, gt=0)
    max_staleness: int = limited(0, ge=0)
    num_clients: int = limited(0, ge=0)
    codec: str = "raw"
    downlink_codec: str = ""

    def __post_init__(self) -> None:
        """Refuse a codec that does not parse, and a downlink that would never catch up."""
        make_codec(self.codec, key="codec")
        if self.downlink_codec:
            make_codec(self.downlink_codec, key="downlink_codec")
        if "signs" in self.downlink_codec:
            raise ConfigError(
                f"{self.downlink_codec!r} loses more than it sends, which only a mean over many "
                "devices makes up for: take int8, or topk without signs",
                key="downlink_codec",
            )


@dataclass(frozen=True)
class CentralPrivacyConfig:
    """Differential privacy of each client towards everyone but the server; see docs/privacy.md.

    Attributes:
        noise_multiplier: noise standard deviation in clipping norms, of each round if the budget is
            split evenly; 0 switches it off.
        clip_norm: L2 norm that each update is scaled down to.
        noise_split: the last round's share of the budget over the first one's. Above 1 the noise
            falls from round to round, below 1 it grows; ε over all rounds is the same.
        delta: δ that ε is reported at.
    """

    noise_multiplier: float = limited(0.0, ge=0)
    clip_norm: float = limited(1.0, gt=0)
    noise_split: float = limited(1.0, ge=1e-6, le=1e6)
    delta: float = limited(1e-5, gt=0, lt=1)

    @property
    def enabled(self) -> bool:
        """Tell whether aggregates are noised."""
        return self.noise_multiplier > 0


@dataclass(frozen=True)
class EvaluateConfig:
    """Federated evaluation on the devices' holdouts; 0 switches it off."""

    every_rounds: int = limited(5, ge=0)
    deadline_s: float = limited(20.0, gt=0)


@dataclass(frozen=True)
class RefineConfig:
    """Refinement of the aggregate between rounds.

    Attributes:
        trainer: ``host:port`` of the cloud trainer; empty switches refinement off;
            ``in-process`` trains in the ServerApp itself (simulation, ``flwr run .``).
        mode: ``sequential`` refines a round's aggregate before it is committed; ``overlapped``
            while the next round's devices train, and adds what changed to that round's aggregate.
        objective: what is minimised; ``mu`` belongs to ``anchored``, ``distill_weight`` and
            ``temperature`` to ``distill``.
        augmentation: how images or other inputs are varied before each step; ``affine`` by
            ``max_turn_deg``, ``max_zoom`` and ``max_shift`` (shares of size and side), ``task`` by
            the task's own ``augment``.
        every_rounds: refine after every so many rounds.
        momentum: of ``sgd``.
        max_grad_norm: gradients of a larger norm are scaled down to this; 0 leaves them.
        budget_s: seconds after which a refinement ends well with the steps it has; 0 takes all.
        deadline_s: seconds after which a refinement has failed.
        restart_s: seconds that a trainer lost in mid-refinement is waited for, within the deadline.
        held_out: fraction of the proxy data that is never trained on and chooses the blend.
        blends: shares of the refinement to choose from; 0, the aggregate itself, is always one.
        margin: the gate set's mean loss may rise by at most this much, with 95 % confidence.
        devices_margin: the same for the mean loss on the devices' holdouts, plainly compared.
        token_file: file whose first line is the trainer's token; needed beyond loopback.
    """

    trainer: str = ""
    mode: str = limited("sequential", choices=("sequential", "overlapped"))
    objective: str = "fine-tune"
    augmentation: str = "none"
    every_rounds: int = limited(1, ge=1)
    optimizer: str = "sgd"
    learning_rate: float = limited(0.02, gt=0)
    momentum: float = limited(0.9, ge=0, lt=1)
    weight_decay: float = limited(0.0, ge=0)
    max_grad_norm: float = limited(0.0, ge=0)
    batch_size: int = limited(16, ge=1)
    steps: int = limited(40, ge=1)
    budget_s: float = limited(0.0, ge=0)
    deadline_s: float = limited(30.0, gt=0)
    restart_s: float = limited(20.0, ge=0)
    mu: float = limited(0.1, ge=0)
    distill_weight: float = limited(1.0, ge=0)
    temperature: float = limited(2.0, gt=0)
    max_turn_deg: float = limited(10.0, ge=0, le=180)
    max_zoom: float = limited(0.1, ge=0, lt=1)
    max_shift: float = limited(0.1, ge=0, le=1)
    held_out: float = limited(0.2, ge=0, lt=1)
    blends: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    margin: float = limited(0.0, ge=0)
    devices_margin: float = limited(0.0, ge=0)
    token_file: Path | None = None
    tls: TlsConfig = field(default_factory=TlsConfig)

    def __post_init__(self) -> None:
        """Refuse an unprotected address, a budget that never ends well and blends of nothing."""
        self._check_blends()
        if self.budget_s >= self.deadline_s:
            raise ConfigError(
                f"must be below deadline_s = {self.deadline_s:g}, got {self.budget_s:g}",
                key="budget_s",
            )
        if self.trainer in ("", "in-process"):
            return
        split_address(self.trainer, "trainer")
        if not is_loopback(self.trainer) and (self.tls.ca is None or self.token_file is None):
            raise ConfigError(
                f"{self.trainer} is not on loopback: set tls.ca and token_file", key="trainer"
            )

    def _check_blends(self) -> None:
        if not self.blends or not all(0 < share <= 1 for share in self.blends):
            raise ConfigError(f"must be above 0 and at most 1, got {self.blends}", key="blends")
        if self.held_out == 0 and len(self.blends) > 1:
            raise ConfigError(
                "must be above 0 to choose between several blends, or blends must be one",
                key="held_out",
            )


@dataclass(frozen=True)
class SuperLinkConfig:
    """Flower's own server process, always on loopback.

    Attributes:
        port: where nodes, the ServerApp and ``flwr`` connect; devices elsewhere reach it
            through a proxy that lets ``/v1/fleet/*`` through and ends TLS.
    """

    port: int = limited(9092, ge=1, le=65535)


@dataclass(frozen=True)
class CanaryConfig:
    """Whether a version goes to some devices first; see docs/operate.md.

    Attributes:
        fraction: of the devices, drawn anew for each round; 0 sends versions to all at once.
        trial_s: seconds after which a version goes to all, if the canaries do not refuse it.
        tolerance: share of the canaries that may refuse a version; beyond it it is withdrawn.
    """

    fraction: float = limited(0.0, ge=0, le=1)
    trial_s: float = limited(60.0, gt=0)
    tolerance: float = limited(0.2, ge=0, lt=1)


@dataclass(frozen=True)
class RegistryConfig:
    """The model registry that devices watch.

    Attributes:
        release_key: Ed25519 private key (PEM) that signs versions; made if it is missing,
            its public half beside it with the suffix ``.pub``.
        keep_versions: published versions kept on disk.
    """

    address: str = "127.0.0.1:9093"
    release_key: Path | None = None
    keep_versions: int = limited(5, ge=1)
    canary: CanaryConfig = field(default_factory=CanaryConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)

    def __post_init__(self) -> None:
        """Refuse plaintext beyond loopback."""
        split_address(self.address, "address")
        if not is_loopback(self.address) and self.tls.cert is None:
            raise ConfigError(
                f"{self.address} is not on loopback: set tls.cert and tls.key", key="address"
            )


@dataclass(frozen=True)
class ServerConfig:
    """Everything that ``fedge-server`` and its ServerApp read.

    Attributes:
        run_dir: folder of this run: events, checkpoints, metrics, published versions.
        run_name: part of the key of each round; the same name resumes the same run.
        metrics_address: ``host:port`` of the Prometheus page; empty switches it off.
    """

    run_name: str = "run"
    run_dir: Path = Path("runs/run")
    seed: int = limited(0, ge=0)
    metrics_address: str = ""
    task: TaskConfig = field(default_factory=TaskConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    train: Hyperparameters = field(default_factory=Hyperparameters)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    central_privacy: CentralPrivacyConfig = field(default_factory=CentralPrivacyConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    tuner: TunerConfig = field(default_factory=TunerConfig)
    superlink: SuperLinkConfig = field(default_factory=SuperLinkConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    mqtt: AnnounceConfig = field(default_factory=AnnounceConfig)

    def __post_init__(self) -> None:
        """Refuse sections that contradict each other."""
        for check in CHECKS:
            check(self)
