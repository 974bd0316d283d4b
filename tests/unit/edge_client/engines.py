"""Engines of the digits model with known weights, and what torch says they must answer."""

from pathlib import Path

import numpy as np

import fedge.tasks
from edge_client.inference import Engine, Version
from fedge.params import Layout, Vector, vector_digest
from fedge.tflite.patch import Patcher

FOLDER = Path(fedge.tasks.__file__).parent / "digits_edge"
TEMPLATE = (FOLDER / "template.tflite").read_bytes()
PLAN = (FOLDER / "plan.json").read_bytes()
PATCHER = Patcher.from_bytes(TEMPLATE, PLAN)
LAYOUT: Layout = PATCHER.plan.layout


def make_weights(seed: int) -> Vector:
    """Return weights of the digits model, different for each seed."""
    return np.random.default_rng(seed).normal(0, 0.2, LAYOUT.size).astype(np.float32)


def make_engine(seed: int) -> Engine:
    """Return an engine whose round is the seed of its weights."""
    weights = make_weights(seed)
    return Engine(PATCHER.patch(LAYOUT, weights), Version(seed, vector_digest(weights)), 1)


def make_inputs(size: int, seed: int = 0) -> np.ndarray:
    """Return float32 inputs ``[size, 64]``."""
    return np.random.default_rng(seed).random((size, 64), np.float32)


def answer(weights: Vector, inputs: np.ndarray) -> np.ndarray:
    """Compute the digits MLP in float64, independently of TFLite and torch."""
    first, first_bias, last, last_bias = (
        view.astype(np.float64) for view in LAYOUT.views(weights).values()
    )
    outputs: np.ndarray = np.maximum(inputs @ first.T + first_bias, 0) @ last.T + last_bias
    return outputs
