"""What may be chosen before a run: options of the task, and how central noise is split."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from fedge.config import build, to_tree
from fedge.errors import ConfigError
from fedge.task import load_task
from server.settings import CentralPrivacyConfig, ServerConfig
from server.tuner.space import Space, Value, Values, read_parameter

SECTION = "tuner.start.space"
SPLIT = "central_privacy.noise_split"


def apply_start(config: ServerConfig, values: Values) -> ServerConfig:
    """Return the configuration with these values in place.

    Raises:
        ConfigError: a value cannot be used; names the key.
    """
    options = {key: value for key, value in values.items() if key != SPLIT}
    config = replace(config, task=replace(config.task, options={**config.task.options, **options}))
    if SPLIT not in values:
        return config
    tree: dict[str, Any] = {**to_tree(config.central_privacy), "noise_split": values[SPLIT]}
    central = build(CentralPrivacyConfig, tree, "central_privacy.")
    return replace(config, central_privacy=central)


def parse_start(config: ServerConfig) -> tuple[Space, Values]:
    """Return what ``tuner.start.space`` describes, and the configured point.

    Raises:
        ConfigError: there is no such option, or its value lies outside; names the key.
    """
    task = load_task(config.task.name, **config.task.options)
    space, current = [], {}
    for key, wanted in _flat(config.tuner.start.space).items():
        value = _configured_split(config) if key == SPLIT else _option_of(task, key, config)
        parameter = read_parameter(key, wanted, value, SECTION)
        if parameter.whole and not all(
            each == int(each) for each in (parameter.low, parameter.high)
        ):
            raise ConfigError(
                f"must have whole ends as {key} = {value!r} is whole, got {wanted!r}",
                key=f"{SECTION}.{key}",
            )
        if not parameter.holds(value):
            raise ConfigError(
                f"does not hold {key} = {value!r}, which is configured", key=f"{SECTION}.{key}"
            )
        space.append(parameter)
        current[key] = value
    if not space:
        raise ConfigError(f"names no option of the task and not {SPLIT}", key=SECTION)
    return tuple(space), current


def as_config(values: Values) -> str:
    """Return the lines of a configuration that say these values."""
    options = [f"{key} = {json.dumps(each)}" for key, each in values.items() if key != SPLIT]
    lines = ["[task.options]", *options] if options else []
    if SPLIT in values:
        section, _, name = SPLIT.partition(".")
        lines += [f"[{section}]", f"{name} = {values[SPLIT]:.6g}"]
    return "\n".join(lines)


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the space by dotted key, however it was written."""
    section, _, name = SPLIT.partition(".")
    nested = tree.get(section)
    if not isinstance(nested, dict) or set(nested) != {name}:
        return dict(tree)
    return {**{key: each for key, each in tree.items() if key != section}, SPLIT: nested[name]}


def _configured_split(config: ServerConfig) -> Value:
    if not config.central_privacy.enabled:
        raise ConfigError(
            "changes nothing while central_privacy.noise_multiplier is 0", key=f"{SECTION}.{SPLIT}"
        )
    return config.central_privacy.noise_split


def _option_of(task: Any, key: str, config: ServerConfig) -> Value:
    value = getattr(task, key, config.task.options.get(key))
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        raise ConfigError(
            f"the task {task.name} has no option of that name that is a number or text",
            key=f"{SECTION}.{key}",
        )
    return value
