"""What this installation can do: the `edge` profile trains, the `infer` profile only predicts."""

from __future__ import annotations

import importlib.util
import logging

from edge_client.settings import EdgeConfig
from edge_client.task_description import Description
from fedge.errors import ConfigError
from fedge.task import EdgeFiles, load_task

_FOR_TRAINING = ("torch", "flwr")

_log = logging.getLogger(__name__)


def missing_for_training() -> tuple[str, ...]:
    """Return the packages that training needs and that are not installed."""
    return tuple(name for name in _FOR_TRAINING if importlib.util.find_spec(name) is None)


def training_problem(config: EdgeConfig) -> str:
    """Return why this device cannot take part as it is configured to; empty if it can."""
    missing = missing_for_training()
    if not missing or not config.node.superlink:
        return ""
    return (
        f"this device predicts and cannot train: {' and '.join(missing)} not installed; "
        'pip install "fedge[edge]", or set node.superlink = ""'
    )


def named_files(config: EdgeConfig) -> EdgeFiles | None:
    """Return the model files that the configuration itself names, if it does."""
    template, plan = config.inference.template, config.inference.plan
    return None if template is None or plan is None else EdgeFiles(template, plan)


def describe_without_torch(config: EdgeConfig) -> Description | None:
    """Return what the task says of itself, where there is no torch; None if it needs torch.

    The task is loaded in this process, which can do no harm where torch is not installed.

    Raises:
        ConfigError: the task cannot be loaded, for another reason than that.
    """
    try:
        return Description.of(load_task(config.task.name, **config.task.options))
    except ConfigError as error:
        cause = error.__cause__
        if not isinstance(cause, ModuleNotFoundError) or cause.name not in missing_for_training():
            raise
        _log.warning(
            "task %s imports %s, which this device has not: name its model in "
            "inference.template and inference.plan",
            config.task.name,
            cause.name,
        )
        return None
