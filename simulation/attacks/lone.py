"""Attacks that a malicious client makes out of its own honest update alone."""

from __future__ import annotations

import math

import numpy as np

from simulation.attacks.contracts import UPDATE_ATTACKS, Forgery, Scene
from simulation.settings import AttackConfig

CLAIMED_EXAMPLES = 1e9
"""Example weight that is claimed, so that a weighted mean would be the attacker's update alone."""
NAN_STRIDE = 100


@UPDATE_ATTACKS.register("sign-flip")
class SignFlip:
    """Send the honest update backwards, as long as it was."""

    def __init__(self, config: AttackConfig) -> None:
        del config

    def forge(self, scene: Scene) -> Forgery:
        """Return the negated delta."""
        return Forgery(-scene.honest, scene.num_examples)


@UPDATE_ATTACKS.register("scale")
class Scale:
    """Send the honest update backwards, ``factor`` times as long."""

    def __init__(self, config: AttackConfig) -> None:
        self._factor = np.float32(-config.factor)

    def forge(self, scene: Scene) -> Forgery:
        """Return the delta times minus the factor."""
        return Forgery(self._factor * scene.honest, scene.num_examples)


@UPDATE_ATTACKS.register("gaussian")
class Gaussian:
    """Send noise alone, whose expected norm is ``factor`` honest norms."""

    def __init__(self, config: AttackConfig) -> None:
        self._factor = config.factor

    def forge(self, scene: Scene) -> Forgery:
        """Return independent normal entries."""
        size = scene.honest.size
        std = self._factor * float(np.linalg.norm(scene.honest)) / math.sqrt(size)
        noise = scene.rng.standard_normal(size, np.float32)
        return Forgery(np.float32(std) * noise, scene.num_examples)


@UPDATE_ATTACKS.register("nan")
class NotANumber:
    """Send the honest update with NaN in one entry of a hundred, the first among them."""

    def __init__(self, config: AttackConfig) -> None:
        del config

    def forge(self, scene: Scene) -> Forgery:
        """Return the delta with NaN entries."""
        delta = scene.honest.copy()
        delta[::NAN_STRIDE] = np.nan
        return Forgery(delta, scene.num_examples)


@UPDATE_ATTACKS.register("examples")
class FalseCount:
    """Send the honest update backwards and claim a billion examples for it."""

    def __init__(self, config: AttackConfig) -> None:
        del config

    def forge(self, scene: Scene) -> Forgery:
        """Return the negated delta with the false claim."""
        return Forgery(-scene.honest, CLAIMED_EXAMPLES)
