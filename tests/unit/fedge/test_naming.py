from __future__ import annotations

import pytest

from fedge.errors import ConfigError
from fedge.naming import Registry


def test_an_entry_is_found_under_its_name() -> None:
    registry: Registry[type[object]] = Registry("thing")
    entry = registry.register("one")(int)
    registry.register("another")(str)
    assert registry["one"] is entry is int
    assert list(registry) == ["another", "one"]
    assert "one" in registry
    assert "two" not in registry


def test_an_unknown_name_lists_those_there_are() -> None:
    registry: Registry[type[object]] = Registry("thing")
    registry.register("one")(int)
    registry.register("another")(str)
    with pytest.raises(ConfigError, match=r"^no thing is called 'two'; there are: another, one$"):
        registry["two"]


def test_a_name_is_given_once() -> None:
    registry: Registry[type[object]] = Registry("thing")
    registry.register("one")(int)
    with pytest.raises(ValueError, match="thing 'one' is registered twice"):
        registry.register("one")(str)
    assert registry["one"] is int
