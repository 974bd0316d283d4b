"""A task whose clients have what a partitioner gives them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from fedge.errors import TaskError
from fedge.task import CloudData, EdgeFiles, Examples, SampleStore, Split, Task
from simulation.partition.division import Division, Partitioner
from simulation.partition.methods import make_partitioner
from simulation.partition.pool import Pool
from simulation.partition.reading import read_pool
from simulation.partition.settings import DataConfig

if TYPE_CHECKING:
    from torch import Tensor, nn


def partitioned_task(
    config: DataConfig,
    task: Task,
    num_clients: int,
    seed: int,
    *,
    partitioner: Partitioner | None = None,
) -> Task:
    """Return a task whose ``client_data`` come from the configured source and partitioner.

    Data are read and divided at once, so that what is wrong with them is said before a round
    begins. Without a source the task itself is returned.

    Args:
        config: which data, divided how.
        task: model, loss, metrics and the cloud's data.
        num_clients: clients there are.
        seed: decides all that is drawn at random.
        partitioner: used instead of the one that the configuration names.

    Raises:
        ConfigError: source, column, partitioner or number of clients cannot be used.
        TaskError: the data cannot be learnt from.
    """
    if not config.source:
        return task
    wrapped = PartitionedTask(config, task, num_clients, seed, partitioner)
    _ = wrapped.division
    return wrapped


class PartitionedTask:
    """Every member but those about clients is the wrapped task's.

    A copy in another process holds the recipe and not the data: it reads and divides them again,
    with the same result.

    Args:
        config, task, num_clients, seed, partitioner: as for `partitioned_task`.
    """

    def __init__(
        self,
        config: DataConfig,
        task: Task,
        num_clients: int,
        seed: int,
        partitioner: Partitioner | None = None,
    ) -> None:
        self._recipe = (config, task, num_clients, seed, partitioner)
        self._config = config
        self._task = task
        self._num_clients = num_clients
        self._seed = seed
        self._partitioner = partitioner or make_partitioner(config)

    def __reduce__(self) -> tuple[Any, ...]:
        return PartitionedTask, self._recipe

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._task, name)

    @cached_property
    def pool(self) -> Pool:
        """All that is divided."""
        return read_pool(self._config, self._task)

    @cached_property
    def division(self) -> Division:
        """Who has what."""
        return self._partitioner.divide(self.pool, self._num_clients, self._seed)

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Return one client's examples.

        Raises:
            TaskError: there is no such client, or another number of them than were divided for.
        """
        self._check_client(client, num_clients)
        examples = self.pool.examples.subset(self.division.parts.indices(client))
        return self.division.view(client, examples)

    def num_examples(self, client: int, num_clients: int) -> int:
        """Return how many examples a client has."""
        self._check_client(client, num_clients)
        return self.division.parts.num_examples(client)

    def _check_client(self, client: int, num_clients: int) -> None:
        if num_clients != self._num_clients:
            raise TaskError(
                f"{self.name}: divided among {self._num_clients} clients, asked for {num_clients}"
            )
        if not 0 <= client < num_clients:
            raise TaskError(f"{self.name}: client {client} is not one of 0..{num_clients - 1}")

    @property
    def name(self) -> str:
        """Name of the wrapped task."""
        return self._task.name

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self._task.input_shape

    def build_model(self) -> nn.Module:
        """Return a fresh model of the wrapped task."""
        return self._task.build_model()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an example, ``[B]``."""
        return self._task.loss(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return batch means by name."""
        return self._task.metrics(outputs, targets)

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        """Return what a real device of the wrapped task trains on."""
        return self._task.device_data(store, split)

    def cloud_data(self) -> CloudData:
        """Return the cloud's shares, which are the wrapped task's own."""
        return self._task.cloud_data()

    def edge_files(self) -> EdgeFiles | None:
        """Return the wrapped task's template and plan."""
        return self._task.edge_files()
