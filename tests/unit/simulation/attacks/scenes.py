"""A scene in which every number is easy to follow."""

from typing import Any

import numpy as np

from fedge.rng import stream
from simulation.attacks.contracts import UPDATE_ATTACKS, Forgery, Scene
from simulation.settings import AttackConfig

HONEST = np.array([3.0, -4.0, 0.0, 12.0], np.float32)
OTHER = np.array([1.0, 0.0, 2.0, 4.0], np.float32)
NUM_EXAMPLES = 30.0


def make_scene(honest: Any = HONEST, others: Any = (OTHER,), num_asked: int = 10) -> Scene:
    return Scene(
        honest=honest,
        num_examples=NUM_EXAMPLES,
        colluding=np.stack([honest, *others]),
        num_asked=num_asked,
        rng=stream(0, "test"),
    )


def forge(name: str, scene: Scene, **options: Any) -> Forgery:
    return UPDATE_ATTACKS[name](AttackConfig(name=name, **options)).forge(scene)
