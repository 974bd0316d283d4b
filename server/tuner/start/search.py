"""What a run keeps from its start, chosen before it: the model's sizes, the split of its noise.

Each candidate is tried whole, in a virtual federation from first weights, with the configured
hyperparameters; sizes are priced as the TFLite file that devices would get. What was tried is kept
in ``tuner.db``: a search that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import numpy as np

from fedge.errors import ConfigError, FedgeError, TaskError
from fedge.rng import stream
from fedge.settings import TaskConfig
from fedge.task import CloudData, load_task
from fedge.training.local import LocalTrainer
from server.checkpoint import Checkpoint, CheckpointStore
from server.settings import ServerConfig
from server.tuner.federation import VirtualFederation
from server.tuner.pseudo_clients import proxy_parts
from server.tuner.readouts import READOUTS
from server.tuner.samplers import SAMPLERS
from server.tuner.space import Values
from server.tuner.start.price import Price
from server.tuner.start.rating import Rated, Tried, rate
from server.tuner.start.space import SPLIT, apply_start, parse_start
from server.tuner.start.study import StartStudy

log = logging.getLogger(__name__)

Pricing = Callable[[TaskConfig], Price]


class StartSearch:
    """Tries candidates before a run.

    Args:
        config: of the server; ``tuner.start`` says what is tried.
        price: returns what a device pays for a task's model.

    Raises:
        ConfigError: the section cannot be used, or the run has begun; names the key.
    """

    def __init__(self, config: ServerConfig, price: Pricing) -> None:
        self._config = config
        self._price = price
        self._space, self._current = parse_start(config)
        _check(config)
        task = load_task(config.task.name, **config.task.options)
        self._held_out = _held_out(task.cloud_data(), config)
        self._study = StartStudy(config, self._space)

    @property
    def has_sizes(self) -> bool:
        """Whether candidates differ in their model, and so in price."""
        return any(key != SPLIT for key in self._current)

    def run(self) -> list[Rated]:
        """Return what could be tried, the configured point first.

        Raises:
            FedgeError: the configured point itself cannot be tried.
        """
        tried = self._study.tried()
        if not tried:
            tried = [self._measure(self._current)]
        while new := self._propose(tried):
            for values in new:
                tried.append(self._try(values))
        return rate(tried, self._config.tuner.start)

    def _propose(self, tried: list[Tried]) -> list[Values]:
        """Return the next points, a generation of half of all; none once enough were tried."""
        wanted = self._config.tuner.start
        left = min(wanted.candidates - len(tried), max(1, wanted.candidates // 2))
        rng = stream(self._config.seed, f"tuner-start-{len(tried)}", client=self._config.tuner.seed)
        points = SAMPLERS[wanted.sampler]().propose(
            self._study.trials(tried), self._space, wanted.candidates, rng
        )
        known = [each.values for each in tried]
        new = [point for at, point in enumerate(points) if point not in [*known, *points[:at]]]
        return new[: max(0, left)]

    def _try(self, values: Values) -> Tried:
        try:
            return self._measure(values)
        except FedgeError as error:
            # Not written down: what was in the way may be gone when the search is made again.
            log.warning("%s cannot be had: %s", values, error)
            return Tried(values)

    def _measure(self, values: Values) -> Tried:
        config = apply_start(self._config, values)
        losses = self._losses_of(config)
        found = Tried(values, losses, self._price(config.task) if self.has_sizes else None)
        self._study.add(found)
        log.info("tried %s", values)
        return found

    def _losses_of(self, config: ServerConfig) -> tuple[tuple[float, ...], ...]:
        """Return held-out losses after a virtual federation under each draw of noise, ``[D, N]``.

        Raises:
            FedgeError: there is no such model, its training failed, or others were held out.
        """
        task = load_task(config.task.name, **config.task.options)
        data = task.cloud_data()
        if _held_out(data, config) != self._held_out:
            raise ConfigError(
                "it changes which examples are held out, so that losses cannot be compared",
                key="tuner.start.space",
            )
        federation = VirtualFederation(task, config, data, config.seed)
        trainer = LocalTrainer(task)
        weights = trainer.initial_weights(config.seed)
        begin = Checkpoint(config.run_name, 0, trainer.layout, weights, seed=config.seed)
        # Noise does not fall with the rounds as that of gradients does, and a run serves its last
        # weights, so that an average would hide just what the split changes.
        is_noisy = config.central_privacy.enabled
        readout = READOUTS["last" if is_noisy else config.tuner.readout]
        found = []
        for draw in range(config.tuner.start.draws if is_noisy else 1):
            (trial,) = federation.open(begin, [config], draw)
            for number in range(1, config.tuner.virtual_rounds + 1):
                federation.advance([trial], number)
            if trial.state is None:
                raise TaskError(f"training failed: {trial.failure}")
            losses = federation.losses(readout(trial.path))
            if not np.isfinite(losses).all():
                raise TaskError("training diverged: lower train.learning_rate")
            found.append(tuple(float(loss) for loss in losses))
        return tuple(found)


def _held_out(data: CloudData, config: ServerConfig) -> str:
    """Return a digest of the examples that candidates are scored on."""
    _, held = proxy_parts(data.proxy, config)
    digest = hashlib.sha256()
    for part in (held.inputs, held.targets):
        digest.update(
            repr((part.shape, part.dtype)).encode() + np.ascontiguousarray(part).tobytes()
        )
    return digest.hexdigest()


def _check(config: ServerConfig) -> None:
    """Refuse what would compare nothing, and to choose for a run that has begun."""
    if config.tuner.virtual_rounds == 0:
        raise ConfigError(
            "must be above 0: candidates are tried in virtual federations",
            key="tuner.virtual_rounds",
        )
    if config.train.personal_layers:
        raise ConfigError(
            "must be empty: virtual clients have no personal layers, which the global model lacks",
            key="train.personal_layers",
        )
    if config.refine.trainer and not config.refine.held_out:
        raise ConfigError(
            "must be above 0: candidates are scored on proxy examples that no refinement trains on",
            key="refine.held_out",
        )
    begun = CheckpointStore(config.run_dir / "checkpoints").latest_round()
    if begun is not None:
        raise ConfigError(
            f"{config.run_dir} holds a run that is at round {begun} and keeps what it began with: "
            "choose another folder",
            key="run_dir",
        )
