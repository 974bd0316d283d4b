"""What a task may tell about its clients besides what every `Task` does."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class KnowsSizes(Protocol):
    """A task that tells how many examples a client has without making them."""

    def num_examples(self, client: int, num_clients: int) -> int:
        """Return N of ``client_data(client, num_clients)``."""
        ...


@runtime_checkable
class NaturalClients(Protocol):
    """A task whose data belong to a fixed number of people, machines or places."""

    @property
    def num_clients(self) -> int:
        """How many there are; ``client_data(i, num_clients)`` is what the i-th has."""
        ...
