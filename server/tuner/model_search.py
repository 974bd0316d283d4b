"""The model's sizes, chosen before a run: what each learns on proxy data against what it costs.

Sizes are options of the task. Each is tried in one virtual federation from its own first weights,
with the configured hyperparameters, and priced as the TFLite file that devices would get. What was
tried is kept in ``tuner.db``: a search that was cut off goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from fedge.errors import ConfigError, FedgeError
from fedge.rng import stream
from fedge.settings import TaskConfig
from fedge.task import load_task
from fedge.training.local import LocalTrainer
from server.checkpoint import Checkpoint, CheckpointStore
from server.settings import ServerConfig
from server.tuner.federation import VirtualFederation
from server.tuner.model_price import Price
from server.tuner.model_rating import Rated, SizedModel, rate
from server.tuner.model_study import ModelStudy
from server.tuner.readouts import READOUTS
from server.tuner.samplers import SAMPLERS
from server.tuner.space import Space, Values, read_parameter

log = logging.getLogger(__name__)

SECTION = "tuner.model.space"
Pricing = Callable[[TaskConfig], Price]


class ModelSearch:
    """Tries sizes before a run.

    Args:
        config: of the server; ``tuner.model`` says what is tried.
        price: returns what a device pays for a task's model.

    Raises:
        ConfigError: the section cannot be used, or the run has begun; names the key.
    """

    def __init__(self, config: ServerConfig, price: Pricing) -> None:
        self._config = config
        self._price = price
        self._space, self._current = parse_sizes(config)
        _check_unbegun(config)
        self._study = ModelStudy(config, self._space)

    def run(self) -> list[Rated]:
        """Return what could be tried, the configured sizes first.

        Raises:
            FedgeError: the configured sizes themselves cannot be tried.
        """
        tried = self._study.models()
        if not tried:
            tried = [SizedModel(self._current, *self._measure(self._current))]
            self._study.add(tried)
        while new := self._propose(tried):
            for values in new:
                tried.append(self._try(values))
                self._study.add(tried)
        return rate(tried, self._config.tuner.model)

    def _propose(self, tried: list[SizedModel]) -> list[Values]:
        """Return the next sizes, a generation of half of all; none once enough were tried."""
        wanted = self._config.tuner.model
        left = min(wanted.candidates - len(tried), max(1, wanted.candidates // 2))
        rng = stream(self._config.seed, f"model-sizes-{len(tried)}", client=self._config.tuner.seed)
        points = SAMPLERS[wanted.sampler]().propose(
            self._study.trials(), self._space, wanted.candidates, rng
        )
        known = [each.values for each in tried]
        new = [point for at, point in enumerate(points) if point not in [*known, *points[:at]]]
        return new[: max(0, left)]

    def _try(self, values: Values) -> SizedModel:
        try:
            return SizedModel(values, *self._measure(values))
        except FedgeError as error:
            log.warning("%s cannot be had: %s", values, error)
            return SizedModel(values)

    def _measure(self, values: Values) -> tuple[tuple[float, ...], Price]:
        task = self._config.task
        sized = replace(task, options={**task.options, **values})
        found = self._losses(sized), self._price(sized)
        log.info("%s: tried", values)
        return found

    def _losses(self, task_config: TaskConfig) -> tuple[float, ...]:
        """Return held-out losses after a virtual federation.

        Raises:
            FedgeError: the sizes make no model, or its training diverged.
        """
        config = self._config
        task = load_task(task_config.name, **task_config.options)
        federation = VirtualFederation(task, config, task.cloud_data(), config.seed)
        trainer = LocalTrainer(task)
        weights = trainer.initial_weights(config.seed)
        begin = Checkpoint(config.run_name, 0, trainer.layout, weights, seed=config.seed)
        (trial,) = federation.open(begin, [config])
        for number in range(1, config.tuner.virtual_rounds + 1):
            federation.advance([trial], number)
        if trial.state is None:
            raise ConfigError("its training diverged: lower it", key="train.learning_rate")
        losses = federation.losses(READOUTS[config.tuner.readout](trial.path))
        return tuple(float(loss) for loss in losses)


def parse_sizes(config: ServerConfig) -> tuple[Space, Values]:
    """Return what ``tuner.model.space`` describes, and the configured sizes.

    Raises:
        ConfigError: the task has no such option, or its value lies outside; names the key.
    """
    task = load_task(config.task.name, **config.task.options)
    space, current = [], {}
    for key, wanted in config.tuner.model.space.items():
        value = getattr(task, key, None)
        if not isinstance(value, int | float | str) or isinstance(value, bool):
            raise ConfigError(
                f"the task {task.name} has no option of that name that is a number or text",
                key=f"{SECTION}.{key}",
            )
        parameter = read_parameter(key, wanted, value, SECTION)
        if not parameter.holds(value):
            raise ConfigError(
                f"does not hold {key} = {value!r}, the size that is configured",
                key=f"{SECTION}.{key}",
            )
        space.append(parameter)
        current[key] = value
    if not space:
        raise ConfigError("names no option of the task to tune", key=SECTION)
    return tuple(space), current


def _check_unbegun(config: ServerConfig) -> None:
    if config.tuner.virtual_rounds == 0:
        raise ConfigError(
            "must be above 0: sizes are tried in virtual federations", key="tuner.virtual_rounds"
        )
    begun = CheckpointStore(config.run_dir / "checkpoints").latest_round()
    if begun is not None:
        raise ConfigError(
            f"{config.run_dir} holds a run that is at round {begun}, whose model has its sizes: "
            "choose another folder",
            key="run_dir",
        )
