"""The baseline without devices: the same refinements and the same gate, nothing else."""

from __future__ import annotations

from contextlib import closing

from fedge.errors import ConfigError, RefineError
from fedge.task import Task
from fedge.training.local import LocalTrainer
from server.refine import make_refiner
from server.refinement_gate import RefinementGate
from server.settings import ServerConfig


def train_cloud_only(config: ServerConfig, task: Task) -> float:
    """Return the test accuracy after refining as often as a run would, from the same weights."""
    refiner = make_refiner(config, task)
    if refiner is None:
        raise ConfigError("is off, so there is no cloud to train alone", key="refine.trainer")
    data = task.cloud_data()
    trainer = LocalTrainer(task)
    gate = RefinementGate(trainer, data, config.refine, config.seed)
    weights = trainer.initial_weights(config.seed)
    with closing(refiner):
        for number in range(1, config.rounds.num_rounds + 1):
            if number % config.refine.every_rounds:
                continue
            try:
                refined = refiner.refine(weights, round=number, deadline_s=config.refine.deadline_s)
            except RefineError:
                continue
            decision = gate.decide(weights, refined.weights)
            if decision.accepted:
                weights = decision.weights
    return trainer.evaluate(weights, data.test)["accuracy"]
