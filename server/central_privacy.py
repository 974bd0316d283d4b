"""What a run has spent on the privacy of its clients, kept in every checkpoint.

Each round whose updates are aggregated is one Gaussian mechanism, to which a client contributes
at most once. It is accounted at sampling rate 1: cohorts are drawn from the run's seed, which is
no secret, among those who are connected, so that few are asked hides nobody.
"""

from __future__ import annotations

from typing import Any

from fedge.errors import ConfigError
from fedge.privacy.accounting import Spend, epsilon
from server.settings import CentralPrivacyConfig

MEMORY = "central_privacy"


def open_account(
    config: CentralPrivacyConfig, memory: dict[str, Any], round: int, num_lost: int = 0
) -> dict[str, Any]:
    """Return the memory of a run that begins or resumes, with its account where it has one.

    Args:
        config: without noise there is no account: what it held covers later rounds no more.
        memory: of the checkpoint that the run goes on from.
        round: of that checkpoint.
        num_lost: later rounds that were published and whose checkpoints are damaged.

    Raises:
        ConfigError: rounds were committed that no account knows of.
    """
    others = {name: value for name, value in memory.items() if name != MEMORY}
    if not config.enabled:
        return others
    if round > 0 and MEMORY not in memory:
        raise ConfigError(
            f"the {round} rounds so far were not all noised, so no ε can be said of this run: set "
            "it back to 0, or choose another run_dir and run_name",
            key="central_privacy.noise_multiplier",
        )
    account = {**memory.get(MEMORY, {"spends": []}), "delta": config.delta}
    return charge(config, {**others, MEMORY: account}, num_lost)


def charge(
    config: CentralPrivacyConfig, memory: dict[str, Any], num_rounds: int = 1
) -> dict[str, Any]:
    """Return the memory with so many rounds more on the account; as it is without one."""
    if MEMORY not in memory or num_rounds < 1:
        return memory
    account = memory[MEMORY]
    spends = [list(spend) for spend in account["spends"]]
    if spends and spends[-1][0] == config.noise_multiplier:
        spends[-1][1] += num_rounds
    else:
        spends.append([config.noise_multiplier, num_rounds])
    return {**memory, MEMORY: {**account, "spends": spends}}


def account_in(memory: dict[str, Any]) -> dict[str, Any]:
    """Return the account alone, as a memory of nothing else; empty without one."""
    return {MEMORY: memory[MEMORY]} if MEMORY in memory else {}


def epsilon_central(memory: dict[str, Any]) -> float | None:
    """Return ε of a client over all rounds on the account; None without one."""
    if MEMORY not in memory:
        return None
    account = memory[MEMORY]
    return epsilon(
        [Spend(noise, 1.0, rounds) for noise, rounds in account["spends"]], account["delta"]
    )
