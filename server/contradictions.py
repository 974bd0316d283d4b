"""What sections of the server's configuration may not say together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedge.errors import ConfigError
from server.tuner.space import parse_space

if TYPE_CHECKING:
    from server.settings import ServerConfig

PRIVATE_MEAN = "private-mean"


def _check_scaffold(config: ServerConfig) -> None:
    """Refuse half of SCAFFOLD, whose halves correct each other, and late updates for it."""
    halves = {config.aggregation.aggregator, config.train.client_term}
    if "scaffold" in halves and len(halves) == 2:
        raise ConfigError(
            "scaffold needs both aggregation.aggregator and train.client_term, got "
            f"{config.aggregation.aggregator!r} and {config.train.client_term!r}",
            key="aggregation.aggregator",
        )
    if "scaffold" in halves and config.aggregation.max_staleness > 0:
        raise ConfigError(
            "a late update was corrected by an older control: scaffold takes none",
            key="aggregation.max_staleness",
        )


def _check_optimizer(config: ServerConfig) -> None:
    """Refuse methods whose arithmetic supposes that a step is the learning rate × a gradient."""
    method = config.aggregation.aggregator
    if method in ("fednova", "scaffold") and config.train.optimizer != "sgd":
        raise ConfigError(
            f'{method} takes clients that train with "sgd", got {config.train.optimizer!r}: set '
            "it so, or choose another aggregation.aggregator",
            key="train.optimizer",
        )


def _check_personal(config: ServerConfig) -> None:
    """Refuse what trains in the cloud where the global model lacks the clients' own layers."""
    if not config.train.personal_layers:
        return
    why = "the global model's personal layers are untrained, so the cloud would learn to suit them"
    if config.refine.trainer:
        raise ConfigError(f'must be "" with train.personal_layers: {why}', key="refine.trainer")
    if config.aggregation.aggregator == "fltrust":
        raise ConfigError(
            f"fltrust does not go with train.personal_layers: {why}", key="aggregation.aggregator"
        )


def _check_central_privacy(config: ServerConfig) -> None:
    """Refuse whatever would let one client count for more than ε says, or go unnoticed by it."""
    method = config.aggregation.aggregator
    if not config.central_privacy.enabled:
        if method == PRIVATE_MEAN:
            raise ConfigError(
                f"{PRIVATE_MEAN} without noise is not private: set it above 0, or choose another "
                "aggregation.aggregator",
                key="central_privacy.noise_multiplier",
            )
        return
    if method != PRIVATE_MEAN:
        raise ConfigError(
            f'with central_privacy set aggregation.aggregator = "{PRIVATE_MEAN}": in a robust or '
            f"weighted rule such as {method} one client can change more than the noise hides",
            key="aggregation.aggregator",
        )
    if config.aggregation.max_staleness > 0:
        raise ConfigError(
            "must be 0 with central_privacy: the private mean would count a late update in full",
            key="aggregation.max_staleness",
        )
    if config.rounds.cohort_size == 0:
        raise ConfigError(
            "must be above 0 with central_privacy, which divides by this public number",
            key="rounds.cohort_size",
        )
    if config.evaluate.every_rounds > 0:
        raise ConfigError(
            "must be 0 with central_privacy: what devices measure is not noised, and they are sent "
            "weights before the round is committed with its account",
            key="evaluate.every_rounds",
        )


def _check_tuner(config: ServerConfig) -> None:
    """Refuse a search space that cannot be searched, and methods that a change would confuse."""
    parse_space(config.tuner.space, config)
    if not config.tuner.sampler:
        return
    if not config.tuner.space:
        raise ConfigError("names no key to tune", key="tuner.space")
    if config.aggregation.max_staleness > 0:
        raise ConfigError(
            "must be 0 with tuner.sampler: a late update was trained as an earlier round asked",
            key="aggregation.max_staleness",
        )
    if config.aggregation.aggregator == "fltrust":
        raise ConfigError(
            "fltrust does not go with tuner.sampler: the norm of its reference would undo a "
            "change of the clients' learning rate",
            key="aggregation.aggregator",
        )
    _check_tuned_noise(config)
    if config.train.personal_layers and config.tuner.virtual_rounds:
        raise ConfigError(
            "must be 0 with train.personal_layers: the global model's personal layers are "
            "untrained, so virtual clients would say nothing of real ones",
            key="tuner.virtual_rounds",
        )
    if config.refine.trainer and not config.refine.held_out and config.tuner.virtual_rounds:
        raise ConfigError(
            "must be above 0 with tuner.sampler: candidates are scored on proxy examples that no "
            "refinement trains on; or set tuner.virtual_rounds = 0",
            key="refine.held_out",
        )


def _check_tuned_noise(config: ServerConfig) -> None:
    """Refuse to tune the clipping of noise that there is not."""
    for parameter in parse_space(config.tuner.space, config):
        if parameter.key.startswith("central_privacy.") and not config.central_privacy.enabled:
            raise ConfigError(
                "changes nothing while central_privacy.noise_multiplier is 0",
                key=f"tuner.space.{parameter.key}",
            )


CHECKS: tuple[Callable[[ServerConfig], None], ...] = (
    _check_scaffold,
    _check_optimizer,
    _check_personal,
    _check_central_privacy,
    _check_tuner,
)
