"""Where examples come from: files by their ending, and Hugging Face data sets."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fedge.errors import ConfigError, TaskError
from simulation.partition.columns import Array, ArrayColumns, Columns
from simulation.partition.settings import HUB_PREFIX, DataConfig
from simulation.partition.tables import open_csv, open_parquet


def open_source(config: DataConfig) -> Columns:
    """Return the columns of the configured file or data set.

    Raises:
        ConfigError: there is no such source, or what reads it is not installed.
        TaskError: it cannot be read.
    """
    if config.source.startswith(HUB_PREFIX):
        return _open_hub(config)
    path = Path(config.source)
    openers = [read for ending, read in _OPENERS.items() if path.name.endswith(ending)]
    if not openers:
        raise ConfigError(
            f"must be empty, 'task', 'hf:NAME' or a file that ends in {', '.join(_OPENERS)}; "
            f"got {config.source!r}",
            key="data.source",
        )
    if not path.is_file():
        raise ConfigError(f"no such file: {path}", key="data.source")
    return openers[0](path, config)


def _open_npz(path: Path, config: DataConfig) -> ArrayColumns:
    del config

    def pick(name: str) -> Array:
        try:
            return np.asarray(arrays[name])
        except (ValueError, OSError, BadZipFile) as error:
            raise TaskError(f"{path}: the array {name!r} cannot be read: {error}") from error

    try:
        arrays: Any = np.load(path, allow_pickle=False)
    except (ValueError, OSError, BadZipFile) as error:
        raise TaskError(f"{path} cannot be read as an .npz file: {error}") from error
    return ArrayColumns(str(path), arrays.files, pick)


def _open_hub(config: DataConfig) -> ArrayColumns:
    name = config.source.removeprefix(HUB_PREFIX)
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(
            f"{config.source!r} needs Hugging Face datasets, which is not installed: "
            "pip install datasets",
            key="data.source",
        ) from error
    try:
        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
            data = found[config.split] if isinstance(found, dict) else found
        else:
            data = datasets.load_dataset(name, split=config.split)
    except Exception as error:  # it raises whatever its storage and network do
        raise ConfigError(
            f"Hugging Face datasets cannot load {name!r}, split {config.split!r}: "
            f"{type(error).__name__}: {error}; without a network name one that is in its cache, "
            "or a folder that save_to_disk wrote",
            key="data.source",
        ) from error

    def pick(column: str) -> Array:
        return np.asarray(data.select_columns([column]).with_format("numpy")[:][column])

    return ArrayColumns(config.source, data.column_names, pick)


_OPENERS: dict[str, Callable[[Path, DataConfig], Columns]] = {
    ".npz": _open_npz,
    ".csv": open_csv,
    ".csv.gz": open_csv,
    ".parquet": open_parquet,
}
