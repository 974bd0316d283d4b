"""Configuration of a population's data; checks each value without reading any data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedge.config import limited, path_or_name
from fedge.errors import ConfigError

TASK_SOURCE = "task"
HUB_PREFIX = "hf:"
FLOWER_PREFIX = "flwr:"


def is_file(source: str) -> bool:
    """Tell whether a source is a path and not one of the names."""
    return source not in ("", TASK_SOURCE) and not source.startswith(HUB_PREFIX)


@dataclass(frozen=True)
class DataConfig:
    """Which data the clients have, and how they are divided among them.

    Attributes:
        source: empty leaves the task's ``client_data`` as it is; ``task`` divides what the task's
            clients have together; a path to ``.npz``, ``.csv`` (also ``.csv.gz``) or
            ``.parquet``; or ``hf:NAME``, a Hugging Face data set or a folder that one was saved
            to. Server and cloud keep the task's own ``cloud_data``.
        split: of a Hugging Face data set.
        inputs: columns (arrays of an ``.npz``) that make up an example's input, one after
            another; empty takes all but target, key and time.
        target: column to predict.
        key: column that says whose an example is; ``natural`` divides by it.
        time: column to sort by, numbers or time stamps; empty takes the order of the rows.
        input_dtype: what inputs are converted to; ``int64`` suits tokens.
        target_dtype: empty makes whole numbers ``int64`` and others ``float32``.
        missing_values: texts in a CSV that stand for a missing cell, besides the usual ones.
        missing: what to do about rows that lack a value: stop (``error``) or leave them out.
        partitioner: one of `simulation.partition.methods.partitioner_names`, or
            ``flwr:ClassName`` of flwr-datasets; empty is ``iid``.
        partitioner_options: arguments of a ``flwr:`` partitioner.
        alpha: Dirichlet concentration; small is far from IID.
        shards_per_client: of label-sorted data, for ``shards``.
        size_sigma: standard deviation of the logarithm of a client's size.
        mean_examples: mean size of a client that draws with replacement.
        shift: what ``feature-shift`` does to inputs.
        shift_strength: how much of it; 0 leaves them as they are.
        min_examples: fewest that a client may have; what is drawn at random is drawn again.
    """

    source: str = path_or_name("", is_path=is_file)
    split: str = "train"
    inputs: tuple[str, ...] = ()
    target: str = "target"
    key: str = ""
    time: str = ""
    input_dtype: str = limited("float32", choices=("float32", "int64"))
    target_dtype: str = limited("", choices=("", "float32", "int64"))
    missing_values: tuple[str, ...] = ()
    missing: str = limited("error", choices=("error", "drop"))
    partitioner: str = ""
    partitioner_options: dict[str, Any] = field(default_factory=dict)
    alpha: float = limited(0.5, gt=0)
    shards_per_client: int = limited(2, ge=1)
    size_sigma: float = limited(1.0, ge=0, le=3)
    mean_examples: int = limited(50, ge=1)
    shift: str = limited("affine", choices=("affine", "rotation", "noise"))
    shift_strength: float = limited(0.5, ge=0)
    min_examples: int = limited(1, ge=1)

    def __post_init__(self) -> None:
        """Refuse a partitioner of nothing, and a column that is used twice."""
        if self.partitioner and not self.source:
            raise ConfigError(
                f"{self.partitioner!r} has nothing to divide: set data.source to 'task' (what "
                "the task's clients have together), a file or hf:NAME",
                key="partitioner",
            )
        if not self.target:
            raise ConfigError("must name the column to predict, got ''", key="target")
        columns = [*self.inputs, self.target]
        for name in self.inputs:
            if columns.count(name) > 1:
                raise ConfigError(f"{name!r} is used twice in inputs and target", key="inputs")
