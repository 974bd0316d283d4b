"""All examples that clients may have, and what is known of each: label, owner, time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError, TaskError
from fedge.task import Examples, Task
from simulation.partition.contracts import NaturalClients

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Keys:
    """Whose each example is.

    Attributes:
        codes: position in ``names`` of each example's owner, ``[N]``.
        names: of the owners, in order.
    """

    codes: Codes
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Pool:
    """Examples to divide.

    Attributes:
        where: they come from, for error texts.
        keys: whose they are; None where the source does not say.
        times: what to sort by, ``[N]``; None where the order of the rows is that of time.
    """

    where: str
    examples: Examples
    keys: Keys | None = None
    times: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.examples)

    def labels(self) -> Codes:
        """Return the class of each example, ``[N]``, numbered from 0 without gaps.

        Raises:
            ConfigError: targets are not one whole number an example.
        """
        targets = self.examples.targets
        if targets.ndim != 1:
            raise ConfigError(
                f"{self.where} has targets of shape {targets.shape[1:]} an example, and this "
                f"partitioner needs one label; {_WITHOUT_LABELS}",
                key="data.partitioner",
            )
        if targets.dtype.kind not in "iub":
            broken = np.flatnonzero(targets != np.rint(targets))
            if len(broken):
                raise ConfigError(
                    f"{self.where}: row {broken[0]} (counted from 0) has the target "
                    f"{targets[broken[0]]}, and this partitioner needs whole numbers as labels; "
                    f"{_WITHOUT_LABELS}",
                    key="data.target",
                )
        _, codes = np.unique(targets, return_inverse=True)
        return codes.astype(np.int64, copy=False)


_WITHOUT_LABELS = (
    "those that need none are iid, natural, quantity, time-drift, feature-shift and sampled-iid"
)


def task_pool(task: Task) -> Pool:
    """Return what a task's clients have together; whose it was stays known.

    A task with natural clients gives those of all of them. Any other is asked for one client that
    has everything.

    Raises:
        TaskError: a number in it is not finite, or there is nothing.
    """
    num_clients = task.num_clients if isinstance(task, NaturalClients) else 1
    shares = [task.client_data(client, num_clients) for client in range(num_clients)]
    where = f"the task {task.name!r}"
    if not sum(map(len, shares)):
        raise TaskError(f"{where} has no examples to divide: its clients have none")
    examples = Examples(
        np.concatenate([share.inputs for share in shares]),
        np.concatenate([share.targets for share in shares]),
    )
    check_finite(where, "inputs", examples.inputs)
    check_finite(where, "targets", examples.targets)
    owners = np.repeat(np.arange(num_clients), [len(share) for share in shares])
    keys = Keys(owners, tuple(map(str, range(num_clients))))
    return Pool(where, examples, keys if isinstance(task, NaturalClients) else None)


def check_finite(where: str, column: str, values: npt.NDArray[Any]) -> None:
    """Refuse numbers that are NaN or infinite.

    Raises:
        TaskError: names the first row that has one.
    """
    row = first_not_finite(values)
    if row is None:
        return
    broken = np.ravel(values[row])
    place = np.flatnonzero(~np.isfinite(broken))[0]
    entry = f", entry {place}" if len(broken) > 1 else ""
    raise TaskError(
        f"{where}: {column}, row {row} (counted from 0){entry} is {broken[place]}; expected a "
        "finite number: fill or remove it"
    )


def first_not_finite(values: npt.NDArray[Any]) -> int | None:
    """Return the first row that has a NaN or an infinity, or None."""
    # A sum passes NaN and Inf on and needs no memory; only where it is broken is each row seen.
    if values.dtype.kind not in "fc" or np.isfinite(values.sum(dtype=np.float64)):
        return None
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = values[start : start + _ROWS_AT_ONCE]
        finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            return start + int(np.argmin(finite))
    return None


_ROWS_AT_ONCE = 65536
