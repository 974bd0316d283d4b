"""What is refused before anything starts: names that nobody knows and models no device can use."""

from __future__ import annotations

from aggregation.cohort import aggregator_names
from aggregation.methods import OPTIMIZERS
from fedge.errors import ConfigError, ModelError
from fedge.personal import personal_part
from fedge.settings import split_address
from fedge.task import Task, load_task
from fedge.tokens import read_token
from fedge.weights import build_checked_model, layout_of
from server.convert import MISSING_CONVERTER, find_converter
from server.settings import ServerConfig
from server.trainer.augmentations import AUGMENTATIONS
from server.trainer.objectives import OBJECTIVES
from server.trainer.optimizers import OPTIMIZERS as OPTIMIZERS_OF_REFINEMENT
from server.trainer.spec import RefineSpec
from server.tuner.pruners import PRUNERS
from server.tuner.readouts import READOUTS
from server.tuner.samplers import SAMPLERS
from server.tuner.schedules import SCHEDULES
from server.tuner.space import parse_space


def load_checked_task(config: ServerConfig) -> Task:
    """Return the task, or refuse what no run could be made with.

    Raises:
        FedgeError: it cannot be loaded, learnt or served to a device, or a name is unknown.
    """
    check_names(config)
    task = load_task(config.task.name, **config.task.options)
    check_model(config, task)
    if task.edge_files() is None and find_converter() is None:
        raise ModelError(f"task {task.name} ships no TFLite template and {MISSING_CONVERTER}")
    return task


def check_model(config: ServerConfig, task: Task) -> None:
    """Refuse a model that cannot be learnt, or is not what the configuration takes it for.

    Raises:
        FedgeError: says what of it cannot be used.
    """
    personal_part(layout_of(build_checked_model(task)), config.train.personal_layers)
    AUGMENTATIONS[config.refine.augmentation](task, RefineSpec())


def check_names(config: ServerConfig, prefix: str = "") -> None:
    """Refuse methods, addresses and files that do not exist.

    Args:
        prefix: of the dotted keys, where the configuration is a section of another.

    Raises:
        ConfigError: names the dotted key, and the names there are.
    """
    method = config.aggregation
    _one_of(f"{prefix}aggregation.aggregator", method.aggregator, aggregator_names())
    _one_of(f"{prefix}aggregation.server_optimizer", method.server_optimizer, list(OPTIMIZERS))
    _one_of(f"{prefix}refine.objective", config.refine.objective, list(OBJECTIVES))
    _one_of(f"{prefix}refine.augmentation", config.refine.augmentation, list(AUGMENTATIONS))
    _one_of(f"{prefix}refine.optimizer", config.refine.optimizer, list(OPTIMIZERS_OF_REFINEMENT))
    _one_of(f"{prefix}tuner.start.sampler", config.tuner.start.sampler, list(SAMPLERS))
    _one_of(f"{prefix}tuner.readout", config.tuner.readout, list(READOUTS))
    if config.tuner.sampler:
        _one_of(f"{prefix}tuner.sampler", config.tuner.sampler, list(SAMPLERS))
        _one_of(f"{prefix}tuner.pruner", config.tuner.pruner, list(PRUNERS))
        _one_of(f"{prefix}tuner.schedule", config.tuner.schedule, list(SCHEDULES))
        for parameter in parse_space(config.tuner.space, config):
            if parameter.key == "aggregation.server_optimizer":
                for name in parameter.choices:
                    _one_of(f"{prefix}tuner.space.{parameter.key}", str(name), list(OPTIMIZERS))
    if config.metrics_address:
        split_address(config.metrics_address, f"{prefix}metrics_address")
    if config.refine.trainer and config.refine.token_file is not None:
        read_token(config.refine.token_file, key=f"{prefix}refine.token_file")


def _one_of(key: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ConfigError(f"must be one of {', '.join(known)}, got {name!r}", key=key)
