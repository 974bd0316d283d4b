"""Partitioners of flwr-datasets: they divide our pool, client by client, when asked."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np

from fedge.errors import ConfigError
from fedge.rng import stream_seed
from simulation.partition.division import Division, Index
from simulation.partition.pool import Pool
from simulation.partition.settings import FLOWER_PREFIX, DataConfig

INDEX, LABEL, KEY, TIME = "index", "label", "key", "time"
"""Columns of the data set that a Flower partitioner divides; ``partition_by`` names one."""

_INSTALL = "is not installed: pip install flwr-datasets"


class FlowerParts:
    """What a Flower partitioner gives each client.

    Args:
        partitioner: with its data set assigned.
        min_examples: fewest that a client may have.
    """

    def __init__(self, partitioner: Any, min_examples: int) -> None:
        self._partitioner = partitioner
        self._min_examples = min_examples
        self._sizes: dict[int, int] = {}

    def num_examples(self, client: int) -> int:
        """Return how many examples a client has; a partition that was made is remembered."""
        if client not in self._sizes:
            self.indices(client)
        return self._sizes[client]

    def indices(self, client: int) -> Index:
        """Return the positions of a client's examples.

        Raises:
            ConfigError: the partitioner fails, or gives the client too few.
        """
        try:
            part = self._partitioner.load_partition(client).with_format("numpy")
            found = np.asarray(part[:][INDEX], np.int64)
        except Exception as error:  # it is the user's: whatever it raises is its error
            raise ConfigError(
                f"{type(self._partitioner).__name__} failed for client {client}: "
                f"{type(error).__name__}: {error}",
                key="data.partitioner_options",
            ) from error
        self._sizes[client] = len(found)
        if len(found) < self._min_examples:
            raise ConfigError(
                f"{type(self._partitioner).__name__} gives client {client} {len(found)} examples; "
                f"expected {self._min_examples} or more",
                key="data.min_examples",
            )
        return found


class FlowerPartitioner:
    """Let a `flwr_datasets.partitioner.Partitioner` divide the pool.

    It sees a data set of the columns `INDEX`, `LABEL` (where the target is one a row), `KEY` and
    `TIME` (where the source has them).

    Args:
        config: names the class (``flwr:ClassName``) and its options; what the options leave out
            of ``num_partitions``, ``partition_by`` (the label, or the key where there is one)
            and ``seed`` is filled in.
        made: an object to use instead.
    """

    def __init__(self, config: DataConfig, made: Any = None) -> None:
        self._config = config
        self._made = made

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return what the partitioner makes of the pool."""
        partitioner = self._made
        if partitioner is None:
            partitioner = self._make(pool, num_clients, seed)
        if not partitioner.is_dataset_assigned():
            partitioner.dataset = _as_dataset(pool)
        try:
            num_partitions = partitioner.num_partitions
        except Exception as error:  # it may divide only now, and fail
            raise self._failure(error) from error
        if num_partitions < num_clients:
            raise ConfigError(
                f"{num_clients} clients, but {type(partitioner).__name__} makes "
                f"{num_partitions} partitions; take at most so many clients",
                key="num_clients",
            )
        return Division(FlowerParts(partitioner, self._config.min_examples))

    def _make(self, pool: Pool, num_clients: int, seed: int) -> Any:
        name = self._config.partitioner.removeprefix(FLOWER_PREFIX)
        known = _known_partitioners()
        if name not in known:
            raise ConfigError(
                f"flwr-datasets has no partitioner {name!r}; it has: {', '.join(sorted(known))}",
                key="data.partitioner",
            )
        takes = inspect.signature(known[name]).parameters
        filled = {
            "num_partitions": num_clients,
            "partition_by": LABEL if pool.keys is None else KEY,
            "seed": stream_seed(seed, "partition-flwr") % 2**32,
        }
        options = {key: value for key, value in filled.items() if key in takes}
        try:
            return known[name](**{**options, **self._config.partitioner_options})
        except Exception as error:  # it checks its own arguments
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"{self._config.partitioner or type(self._made).__name__} cannot divide this: "
            f"{type(error).__name__}: {error}",
            key="data.partitioner_options",
        )


def _known_partitioners() -> dict[str, Any]:
    try:
        module = importlib.import_module("flwr_datasets.partitioner")
    except ImportError as error:
        raise ConfigError(
            f"a partitioner of flwr-datasets is named, which {_INSTALL}", key="data.partitioner"
        ) from error
    return {name: getattr(module, name) for name in dir(module) if name.endswith("Partitioner")}


def _as_dataset(pool: Pool) -> Any:
    """Return a Hugging Face data set of positions and of what they can be divided by."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(
            f"a Flower partitioner needs Hugging Face datasets, which {_INSTALL}",
            key="data.partitioner",
        ) from error
    columns: dict[str, Any] = {INDEX: np.arange(len(pool))}
    if pool.examples.targets.ndim == 1:
        columns[LABEL] = pool.examples.targets
    if pool.keys is not None:
        columns[KEY] = pool.keys.codes
    if pool.times is not None:
        columns[TIME] = pool.times
    return datasets.Dataset.from_dict(columns)
