"""Attacks that malicious clients make together, out of the honest updates of all of them."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from simulation.attacks.contracts import UPDATE_ATTACKS, Forgery, Scene
from simulation.settings import AttackConfig


@UPDATE_ATTACKS.register("ipm")
class InnerProduct:
    """Send a little of the mean update, backwards, so that it passes for an honest one.

    Source: Xie, Koyejo and Gupta, Fall of Empires: Breaking Byzantine-tolerant SGD by Inner
    Product Manipulation, UAI 2019. The mean is that of the malicious clients' own updates.
    """

    def __init__(self, config: AttackConfig) -> None:
        self._epsilon = np.float32(config.ipm_epsilon)

    def forge(self, scene: Scene) -> Forgery:
        """Return minus epsilon times the mean."""
        return Forgery(-self._epsilon * scene.colluding.mean(axis=0), scene.num_examples)


@UPDATE_ATTACKS.register("alie")
class ALittleIsEnough:
    """Send the mean less as many standard deviations as still pass for an honest update.

    Source: Baruch, Baruch and Goldberg, A Little Is Enough: Circumventing Defenses For
    Distributed Learning, NeurIPS 2019, algorithm 3.
    """

    def __init__(self, config: AttackConfig) -> None:
        del config

    def forge(self, scene: Scene) -> Forgery:
        """Return mean - z std, coordinate by coordinate."""
        z = largest_deviation(scene.num_asked, len(scene.colluding))
        mean, std = scene.colluding.mean(axis=0), scene.colluding.std(axis=0)
        return Forgery(mean - np.float32(z) * std, scene.num_examples)


def largest_deviation(num_clients: int, num_malicious: int) -> float:
    """Return z: so far out that enough honest clients are farther out to make a majority.

    With s = ⌊N/2⌋ + 1 - M honest supporters needed, z is the normal quantile of
    (N - M - s) / (N - M). It is 0 where the malicious need nobody (or there is no quantile).
    """
    num_honest = num_clients - num_malicious
    supporters = num_clients // 2 + 1 - num_malicious
    if supporters <= 0 or num_honest <= supporters:
        return 0.0
    return max(0.0, NormalDist().inv_cdf((num_honest - supporters) / num_honest))
