"""Partitions in the strict sense: every example belongs to one client at most."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError
from simulation.partition.division import Index
from simulation.partition.pool import Pool

NOBODY = -1
"""Owner of an example that no client has."""

MAX_DRAWS = 100
"""Draws at random before a partitioner gives up on ``data.min_examples``."""


class DealtParts:
    """Each client's examples lie one after another in one array; a client's are a view of it.

    Args:
        owners: client of each example, ``[N]``; `NOBODY` leaves it out.
    """

    def __init__(self, owners: npt.NDArray[np.integer], num_clients: int) -> None:
        self._sizes = np.bincount(owners[owners != NOBODY], minlength=num_clients)
        self._ends = np.cumsum(self._sizes, dtype=np.int64)
        order = np.argsort(owners, kind="stable")[np.count_nonzero(owners == NOBODY) :]
        fits = len(owners) <= np.iinfo(np.int32).max
        self._order: Index = order.astype(np.int32 if fits else np.int64)
        self._order.flags.writeable = False

    def num_examples(self, client: int) -> int:
        """Return how many examples a client has."""
        return int(self._sizes[client])

    def indices(self, client: int) -> Index:
        """Return the positions of a client's examples in the order of the pool."""
        end = self._ends[client]
        return self._order[end - self._sizes[client] : end]


def check_enough(pool: Pool, num_clients: int, min_examples: int) -> None:
    """Refuse more clients than there are examples for.

    Raises:
        ConfigError: says how many clients there can be.
    """
    if num_clients * min_examples > len(pool):
        raise ConfigError(
            f"{num_clients} clients cannot have {min_examples} or more of the {len(pool)} "
            f"examples of {pool.where} each; take at most {len(pool) // min_examples} clients, or "
            "let them draw with replacement (data.partitioner = 'sampled' or 'sampled-iid')",
            key="num_clients",
        )


def too_few(
    sizes: npt.NDArray[np.int64], min_examples: int, where: str, advice: str
) -> ConfigError:
    """Return the error that names the client with the fewest examples."""
    client = int(np.argmin(sizes))
    found = f"{sizes[client]} examples" if sizes[client] else "no example"
    return ConfigError(
        f"client {client} gets {found} of {where}; expected {min_examples} or more: {advice}",
        key="data.min_examples",
    )
