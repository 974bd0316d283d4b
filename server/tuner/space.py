"""What may be tuned and within which bounds, by the dotted keys of the server's configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedge.config import build, to_tree
from fedge.errors import ConfigError

if TYPE_CHECKING:
    from server.settings import ServerConfig

TUNABLE = (
    "train.learning_rate",
    "train.momentum",
    "train.local_epochs",
    "train.batch_size",
    "train.clip_norm",
    "train.weight_decay",
    "train.proximal_mu",
    "aggregation.server_optimizer",
    "aggregation.learning_rate",
    "aggregation.momentum",
    "aggregation.codec",
    "rounds.cohort_size",
    "central_privacy.clip_norm",
)
PRIVATE_COST = ("train.batch_size", "train.local_epochs")
"""What a device's ε of a round follows from, besides the noise that it fixes itself."""
DEFAULT_POINTS = 5
REACH = 0.15
"""Distance in the space, as a share of its width, over which one point speaks for another."""
_SECTION = "tuner.space"
_RANGE = {"low", "high", "log", "points"}

Value = float | int | str
Values = dict[str, Value]
"""One value for each key of a space."""


@dataclass(frozen=True)
class Parameter:
    """One tuned key.

    Attributes:
        choices: what it may be; empty for a range.
        low, high: bounds of a range, both included.
        log: whether the range is searched by its logarithm.
        points: values that a grid takes of the range.
    """

    key: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    points: int = DEFAULT_POINTS
    whole: bool = False

    def grid(self) -> tuple[Value, ...]:
        """Return the values of a grid, ascending in a range."""
        if self.choices:
            return self.choices
        return tuple(dict.fromkeys(self.at(share) for share in np.linspace(0, 1, self.points)))

    def at(self, share: float) -> Value:
        """Return the value at a share in [0, 1] of the way through."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        value = float(min(max(value, self.low), self.high))
        return round(value) if self.whole else value

    def distance(self, left: Value, right: Value) -> float:
        """Return how far two values are apart, as a share of the way in [0, 1]."""
        if self.choices or isinstance(left, str) or isinstance(right, str):
            return float(left != right)
        if self.low == self.high:
            return 0.0
        if self.log:
            return abs(math.log(left / right)) / math.log(self.high / self.low)
        return abs(left - right) / (self.high - self.low)

    def holds(self, value: Any) -> bool:
        """Tell whether a value lies within."""
        return value in self.choices if self.choices else self.low <= value <= self.high

    def near(self, value: Value) -> Parameter:
        """Return the part of a range that lies within `REACH` of a value; choices stay."""
        if self.choices or isinstance(value, str):
            return self
        if self.log:
            factor = (self.high / self.low) ** REACH
            low, high = value / factor, value * factor
        else:
            reach = (self.high - self.low) * REACH
            low, high = value - reach, value + reach
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        return replace(self, low=max(low, self.low), high=min(high, self.high))


Space = tuple[Parameter, ...]


def parse_space(tree: Mapping[str, Any], config: ServerConfig) -> Space:
    """Return the space that ``tuner.space`` describes.

    Args:
        tree: by dotted key, or nested by section.
        config: gives the type and limits of each key; its own values must lie within.

    Raises:
        ConfigError: a key or bound cannot be used; names the key.
    """
    return tuple(_parameter(key, wanted, config) for key, wanted in _flat(tree, "").items())


def apply_values(config: ServerConfig, values: Values) -> ServerConfig:
    """Return the configuration with these values in place.

    Raises:
        ConfigError: they cannot be used together; names the key.
    """
    sections: dict[str, dict[str, Value]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    changed = {name: replace(getattr(config, name), **sections[name]) for name in sections}
    return replace(config, **changed)


def values_in(config: ServerConfig, space: Space) -> Values:
    """Return the values that a configuration has of a space's keys."""
    return {parameter.key: _current(config, parameter.key) for parameter in space}


def spread(space: Space, count: int, rng: np.random.Generator) -> list[Values]:
    """Return values that fill the space evenly: each range cut into so many parts, one in each.

    Source: McKay, Beckman and Conover 1979 (Latin hypercube sampling).
    """
    shares = [(rng.permutation(count) + rng.random(count)) / count for _ in space]
    return [
        {each.key: each.at(float(column[row])) for each, column in zip(space, shares, strict=True)}
        for row in range(count)
    ]


def narrowed(space: Space, values: Values) -> Space:
    """Return the neighbourhood of a point."""
    return tuple(each.near(values[each.key]) for each in space)


def distance(space: Space, left: Values, right: Values) -> float:
    """Return the root mean square over the keys of how far two points are apart, in [0, 1]."""
    squares = [each.distance(left[each.key], right[each.key]) ** 2 for each in space]
    return math.sqrt(sum(squares) / len(squares))


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and prefix + name not in TUNABLE:
            if not _may_hold(prefix + name):
                raise _unknown(prefix + name)
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _may_hold(prefix: str) -> bool:
    return any(key.startswith(prefix + ".") for key in TUNABLE)


def _unknown(key: str) -> ConfigError:
    return ConfigError(f"cannot be tuned; these can: {', '.join(TUNABLE)}", key=f"{_SECTION}.{key}")


def _parameter(key: str, wanted: Any, config: ServerConfig) -> Parameter:
    if key not in TUNABLE:
        raise _unknown(key)
    current = _current(config, key)
    parameter = read_parameter(key, wanted, current, _SECTION)
    checked = tuple(_checked(key, value, config) for value in _ends(parameter))
    if parameter.choices:
        parameter = replace(parameter, choices=checked)
    if not parameter.holds(current):
        raise ConfigError(
            f"does not hold {key} = {current!r}, which the first round begins with",
            key=f"{_SECTION}.{key}",
        )
    return parameter


def read_parameter(key: str, wanted: Any, current: Value, section: str) -> Parameter:
    """Return what a list of choices or a range says.

    Args:
        key: what is tuned.
        wanted: the list or the range.
        current: value in use, whose type a range takes.
        section: of the configuration, for errors.

    Raises:
        ConfigError: it is neither; names the key.
    """
    dotted = f"{section}.{key}"
    if isinstance(wanted, list):
        return _choices(key, wanted, dotted)
    return _range(key, wanted, current, dotted)


def _choices(key: str, wanted: list[Any], dotted: str) -> Parameter:
    if not wanted or len(set(map(repr, wanted))) < len(wanted):
        raise ConfigError("must list distinct choices", key=dotted)
    return Parameter(key, choices=tuple(wanted))


def _range(key: str, wanted: Any, current: Value, dotted: str) -> Parameter:
    if not isinstance(wanted, Mapping) or not {"low", "high"} <= set(wanted) <= _RANGE:
        raise ConfigError(
            "must be a list of choices, or a range {low, high} with log and points if wanted, "
            f"got {wanted!r}",
            key=dotted,
        )
    if isinstance(current, str):
        raise ConfigError("is text and has no range: list its choices", key=dotted)
    low, high, log = wanted["low"], wanted["high"], wanted.get("log", False)
    points = wanted.get("points", DEFAULT_POINTS)
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        raise ConfigError(f"low and high must be numbers, got {low!r} and {high!r}", key=dotted)
    if not isinstance(log, bool):
        raise ConfigError(f"log must be true or false, got {log!r}", key=dotted)
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ConfigError(f"points must be a whole number >= 2, got {points!r}", key=dotted)
    if not low < high or (log and low <= 0):
        bound = "0 < low < high" if log else "low < high"
        raise ConfigError(f"needs {bound}, got {low!r} and {high!r}", key=dotted)
    return Parameter(
        key, low=low, high=high, log=log, points=points, whole=isinstance(current, int)
    )


def _ends(parameter: Parameter) -> tuple[Value, ...]:
    if parameter.choices:
        return parameter.choices
    return (parameter.low, parameter.high)


def _checked(key: str, value: Any, config: ServerConfig) -> Value:
    """Return a value as its section takes it."""
    section, _, name = key.partition(".")
    own = getattr(config, section)
    try:
        built = build(type(own), {**to_tree(own), name: value}, f"{section}.")
    except ConfigError as error:
        raise ConfigError(f"would set {error}", key=f"{_SECTION}.{key}") from None
    found: Value = getattr(built, name)
    return found


def _current(config: ServerConfig, key: str) -> Value:
    section, _, name = key.partition(".")
    found: Value = getattr(getattr(config, section), name)
    return found
