"""What a run has spent on the privacy of its clients, kept in every checkpoint.

Each round whose updates are aggregated is one Gaussian mechanism, to which a client contributes
at most once. It is accounted at sampling rate 1: cohorts are drawn from the run's seed, which is
no secret, among those who are connected, so that few are asked hides nobody.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedge.errors import ConfigError
from fedge.privacy.accounting import Spend, epsilon
from server.settings import CentralPrivacyConfig, ServerConfig

MEMORY = "central_privacy"


def noise_of_round(config: ServerConfig, round: int) -> float:
    """Return the noise multiplier of one round.

    A Gaussian mechanism costs in proportion to 1 / noise², and at sampling rate 1 costs add up:
    over all rounds they come to those of as many rounds of ``noise_multiplier``, however split.
    Of two neighbouring rounds the later one's share is the same multiple of the earlier one's.
    """
    wanted, num_rounds = config.central_privacy, config.rounds.num_rounds
    places = np.linspace(0, 1, num_rounds) if num_rounds > 1 else np.zeros(1)
    mean = float(np.mean(wanted.noise_split**places))
    at = places[min(max(round, 1), num_rounds) - 1]
    return float(wanted.noise_multiplier * np.sqrt(mean / wanted.noise_split**at))


def open_account(
    config: CentralPrivacyConfig, memory: dict[str, Any], round: int
) -> dict[str, Any]:
    """Return the memory of a run that begins or resumes, with its account where it has one.

    Args:
        config: without noise there is no account: what it held covers later rounds no more.
        memory: of the checkpoint that the run goes on from.
        round: of that checkpoint.

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
    return {**others, MEMORY: account}


def charge(config: ServerConfig, memory: dict[str, Any], round: int) -> dict[str, Any]:
    """Return the memory with one round more on the account; as it is without one."""
    if MEMORY not in memory:
        return memory
    account, noise = memory[MEMORY], noise_of_round(config, round)
    spends = [list(spend) for spend in account["spends"]]
    if spends and spends[-1][0] == noise:
        spends[-1][1] += 1
    else:
        spends.append([noise, 1])
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
