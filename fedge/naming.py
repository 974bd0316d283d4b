"""Things that a configuration picks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fedge.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Map names to implementations of one kind; new behaviour is one more registration.

    Args:
        kind: what the entries are, for the error text: "aggregator".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files an implementation under a name."""

        def decorate(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return decorate

    def __getitem__(self, name: str) -> T:
        """Return the entry of that name.

        Raises:
            ConfigError: there is none; the text lists those there are.
        """
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries))
            raise ConfigError(f"no {self.kind} is called {name!r}; there are: {known}") from None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in order."""
        return iter(sorted(self._entries))
