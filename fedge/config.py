"""Configuration: TOML read once into frozen dataclasses that check themselves.

A configuration is a frozen dataclass whose fields are scalars, paths, tuples of scalars,
``dict[str, Any]`` (passed on unread) or further such dataclasses. Every error names the dotted
key, the value found and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedge.errors import ConfigError

C = TypeVar("C")
_LIMITS = "fedge.limits"
_IS_PATH = "fedge.is-path"
_SECRET = re.compile("password|passphrase|secret|token")


@dataclass(frozen=True)
class Limits:
    """What a value may be; every bound that is set must hold."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the bounds as a person would say them."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)

    def allow(self, value: Any) -> bool:
        """Tell whether the value lies within every bound."""
        if self.choices:
            return value in self.choices
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


def limited(
    default: Any = MISSING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Iterable[str] = (),
) -> Any:
    """Return a dataclass field whose value is bounded; without default it must be given."""
    limits = Limits(ge, gt, le, lt, tuple(choices))
    return dataclasses.field(default=default, metadata={_LIMITS: limits})


def path_or_name(default: str, *, is_path: Callable[[str], bool]) -> Any:
    """Return a text field that may hold a path; `load` makes it absolute where it does."""
    return dataclasses.field(default=default, metadata={_IS_PATH: is_path})


def load(cls: type[C], path: Path | None, overrides: Iterable[str] = ()) -> C:
    """Read a configuration from a TOML file and ``key=value`` overrides.

    Paths in the file are relative to the file; paths in overrides to the working directory.

    Args:
        cls: the frozen dataclass to fill.
        path: the file, or None for defaults and overrides alone.
        overrides: ``dotted.key=value``; the value is TOML, or else taken as text.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    tree = _read(path) if path is not None else {}
    over: dict[str, Any] = {}
    for text in overrides:
        key, value = _override(text)
        _place(over, key, value)
    base = path.parent.resolve() if path is not None else Path.cwd()
    merged = _merge(_rebase(cls, tree, base), _rebase(cls, over, Path.cwd()))
    return build(cls, merged)


def build(cls: type[C], tree: Mapping[str, Any], prefix: str = "") -> C:
    """Fill a configuration dataclass from nested mappings.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or range.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            raise ConfigError(_unknown(key, fields), key=prefix + key)
    values = {}
    for name, field in fields.items():
        dotted = prefix + name
        if name in tree:
            values[name] = _convert(hints[name], tree[name], dotted)
            _check_limits(field, values[name], dotted)
        elif _is_plain_section(field, hints[name]):
            # Made here, so that what its __post_init__ refuses gets the dotted key.
            values[name] = build(typing.cast("type[Any]", hints[name]), {}, dotted + ".")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError("is missing and has no default", key=dotted)
    return _construct(cls, values, prefix)


def _is_plain_section(field: dataclasses.Field[Any], hint: Any) -> bool:
    """Tell whether a field left out is a section made of its own defaults."""
    factories = (MISSING, hint)
    return (
        dataclasses.is_dataclass(hint)
        and field.default is MISSING
        and field.default_factory in factories
    )


def to_tree(config: Any) -> dict[str, Any]:
    """Return a configuration as nested dictionaries that `build` and TOML accept."""
    tree: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tree[field.name] = to_tree(value)
        elif isinstance(value, Path):
            tree[field.name] = str(value)
        elif isinstance(value, tuple):
            tree[field.name] = list(value)
        elif value is not None:
            tree[field.name] = value
    return tree


def _construct(cls: type[C], values: dict[str, Any], prefix: str) -> C:
    """Make the dataclass; what its ``__post_init__`` refuses gets the full dotted key."""
    try:
        return cls(**values)
    except ConfigError as error:
        if error.key is None or not prefix or error.key.startswith(prefix):
            raise
        text = str(error).removeprefix(f"{error.key}: ")
        raise ConfigError(text, key=prefix + error.key) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _override(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set takes key=value, got {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _place(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{parent} is a value, not a section", key=dotted)
    tree[last] = value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _rebase(cls: type[Any], tree: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the relative paths of a tree absolute; leave what `build` will refuse as it is."""
    hints = typing.get_type_hints(cls)
    named = {field.name: field.metadata.get(_IS_PATH) for field in dataclasses.fields(cls)}
    moved = dict(tree)
    for key, value in tree.items():
        hint = _without_none(hints.get(key))
        is_path = named.get(key) or (bool if hint is Path else None)
        if is_path is not None and isinstance(value, str) and is_path(value):
            moved[key] = str(base / Path(value).expanduser())
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
            moved[key] = _rebase(hint, value, base)
    return moved


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return options[0]
    return hint


def _unknown(key: str, fields: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, fields, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(sorted(fields))
    return f"unknown key; {hint}"


def _convert(hint: Any, value: Any, key: str) -> Any:
    optional = hint is not (hint := _without_none(hint))
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"must be a section, got {_show(key, value)}", key=key)
        return build(typing.cast("type[Any]", hint), value, key + ".")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"must be a list, got {_show(key, value)}", key=key)
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, entry, f"{key}[{i}]") for i, entry in enumerate(value))
    if hint is Path and isinstance(value, str):
        if not value and not optional:
            raise ConfigError("must be a path, got ''", key=key)
        return Path(value) if value else None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return _to_float(value, key)
    expected = dict if origin is dict else hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"must be {_say(expected)}, got {_show(key, value)}", key=key)
    return value


def _to_float(value: int, key: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError("must be a number that fits a float", key=key) from None


def _show(key: str, value: Any) -> str:
    """Return a value for an error text, which is logged: never one that is secret."""
    is_secret = _SECRET.search(key.rpartition(".")[2]) is not None
    return "a value that is not shown" if is_secret else repr(value)


def _say(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, "a path" if hint is Path else "a section")


def _check_limits(field: dataclasses.Field[Any], value: Any, key: str) -> None:
    limits = field.metadata.get(_LIMITS)
    if limits is not None and value is not None and not limits.allow(value):
        raise ConfigError(f"must be {limits}, got {value!r}", key=key)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"must be finite, got {value!r}", key=key)
