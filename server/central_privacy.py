"""What a run has spent on the privacy of its clients, kept in every checkpoint.

Each round whose updates are aggregated is one Gaussian mechanism, to which a client contributes
at most once. It is accounted at sampling rate 1: cohorts are drawn from the run's seed, which is
no secret, among those who are connected, so that few are asked hides nobody.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.durable import append_line
from fedge.errors import CheckpointError, ConfigError
from fedge.privacy.accounting import Spend, epsilon
from server.settings import CentralPrivacyConfig, ServerConfig

log = logging.getLogger(__name__)

MEMORY = "central_privacy"


def noise_by_round(config: ServerConfig) -> npt.NDArray[np.float64]:
    """Return the noise multiplier of each round of a run, ``[num_rounds]``.

    A Gaussian mechanism costs in proportion to 1 / noise², and at sampling rate 1 costs add up:
    over all rounds they come to those of as many rounds of ``noise_multiplier``, however split.
    Of two neighbouring rounds the later one's share is the same multiple of the earlier one's.
    """
    wanted = config.central_privacy
    shares = wanted.noise_split ** np.linspace(0, 1, config.rounds.num_rounds)
    noise: npt.NDArray[np.float64] = wanted.noise_multiplier * np.sqrt(shares.mean() / shares)
    return noise


def noise_of_round(config: ServerConfig, round: int) -> float:
    """Return the noise multiplier of one round; before the first and after the last, theirs."""
    noise = noise_by_round(config)
    return float(noise[min(max(round, 1), len(noise)) - 1])


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


def charge(memory: dict[str, Any], noise_multiplier: float) -> dict[str, Any]:
    """Return the memory with one round more on the account; as it is without one."""
    if MEMORY not in memory:
        return memory
    account = memory[MEMORY]
    spends = [list(spend) for spend in account["spends"]]
    if spends and spends[-1][0] == noise_multiplier:
        spends[-1][1] += 1
    else:
        spends.append([noise_multiplier, 1])
    return {**memory, MEMORY: {**account, "spends": spends}}


def account_in(memory: dict[str, Any]) -> dict[str, Any]:
    """Return the account alone, as a memory of nothing else; empty without one."""
    return {MEMORY: memory[MEMORY]} if MEMORY in memory else {}


def epsilon_central(memory: dict[str, Any]) -> float | None:
    """Return ε of a client over all rounds on the account; None without one."""
    if MEMORY not in memory:
        return None
    account = memory[MEMORY]
    # Costs add up as 1 / noise²: one spend says what thousands of rounds of their own noise do.
    cost = sum(rounds / noise**2 for noise, rounds in account["spends"])
    return epsilon([Spend(1 / math.sqrt(cost), 1.0, 1)] if cost else [], account["delta"])


class NoiseLog:
    """``central-noise.jsonl``: each round's noise, on disk before it is drawn.

    A checkpoint that is damaged after its round was published forgets what the round cost; the
    configuration may be another by then.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "central-noise.jsonl"

    def note(self, round: int, noise_multiplier: float) -> None:
        """Add a round.

        Raises:
            CheckpointError: it cannot be written.
        """
        line = json.dumps({"round": round, "noise_multiplier": noise_multiplier})
        try:
            append_line(self._path, line, fsync=True)
        except OSError as error:
            raise CheckpointError(f"cannot append to {self._path}: {error.strerror}") from error

    def least(self, round: int) -> float | None:
        """Return the least noise that a round was begun with; None where nothing says so.

        Raises:
            CheckpointError: the file cannot be read.
        """
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {self._path}: {error}") from error
        found = []
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["round"] == round:
                    found.append(float(entry["noise_multiplier"]))
            except (ValueError, KeyError, TypeError):
                log.warning("%s: a line is no round's noise: %.80s", self._path, line)
        return min(found, default=None)
