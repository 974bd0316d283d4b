"""Copies of a device's samples in one file, for a person on the device to look at.

Nothing here is called by the daemon, and nothing leaves the device by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.sample_reader import SampleReader, StoredSample
from fedge.errors import ConfigError, StoreError

BATCH_ROWS = 1024  # a Parquet row group: what is in memory at once


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and how many samples were damaged and left out."""

    written: int
    damaged: int


def export(reader: SampleReader, to: Path) -> Exported:
    """Write all samples to a file whose suffix says how: ``.parquet`` or ``.npz``.

    Raises:
        ConfigError: the suffix is another one, a library is missing, or the file cannot be
            written.
        StoreError: the samples cannot be read, or do not fit one ``.npz``.
    """
    write = _WRITERS.get(to.suffix)
    if write is None:
        raise ConfigError(f"{to} should end with {' or '.join(_WRITERS)}", key="--to")
    counter = _Counter(reader)
    beside = to.with_name(f".{to.name}.tmp")
    try:
        beside.unlink(missing_ok=True)
        beside.touch(mode=0o600, exist_ok=False)  # what the samples hold is its owner's alone
        write(counter, beside)
        beside.replace(to)
    except OSError as error:
        raise ConfigError(f"cannot write {to}: {error.strerror or error}", key="--to") from error
    finally:
        beside.unlink(missing_ok=True)
    return Exported(counter.written, counter.damaged)


class _Counter:
    """Goes through the samples that are whole, and counts them and the others."""

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader
        self.written = 0
        self.damaged = 0

    def __iter__(self) -> Iterator[StoredSample]:
        for sample in self._reader.all():
            if sample is None:
                self.damaged += 1
            else:
                self.written += 1
                yield sample


def _write_parquet(samples: _Counter, to: Path) -> None:
    """Write a row a sample, with flat values and their shape, so that any shapes fit one file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed: pip install pyarrow, or export to .npz",
            key="--to",
        ) from error
    numbers = pyarrow.list_(pyarrow.float64())
    shape = pyarrow.list_(pyarrow.int64())
    schema = pyarrow.schema(
        [
            ("id", pyarrow.string()),
            ("added_at", pyarrow.timestamp("us", tz="UTC")),
            ("split", pyarrow.string()),
            *(("input", numbers), ("input_shape", shape), ("input_dtype", pyarrow.string())),
            *(("target", numbers), ("target_shape", shape), ("target_dtype", pyarrow.string())),
        ]
    )
    with pyarrow.parquet.ParquetWriter(to, schema) as writer:
        for rows in _batches(samples):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _batches(samples: _Counter) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for sample in samples:
        rows.append(
            {
                "id": sample.sample_id,
                "added_at": int(sample.added_at * 1e6),
                "split": sample.split,
                **_columns("input", sample.input),
                **_columns("target", sample.target),
            }
        )
        if len(rows) == BATCH_ROWS:
            yield rows
            rows = []
    yield rows


def _columns(name: str, array: npt.NDArray[Any] | None) -> dict[str, Any]:
    if array is None:
        return {}
    return {
        name: array.ravel().tolist(),
        f"{name}_shape": list(array.shape),
        f"{name}_dtype": array.dtype.name,
    }


def _write_npz(samples: _Counter, to: Path) -> None:
    """Write labelled and unlabelled samples apart, each as one array ``[N, ...]``."""
    parts: tuple[list[StoredSample], list[StoredSample]] = ([], [])
    for sample in samples:
        parts[sample.target is None].append(sample)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for prefix, part in zip(("", "unlabelled_"), parts, strict=True):
        arrays[f"{prefix}ids"] = np.array([sample.sample_id for sample in part], np.str_)
        arrays[f"{prefix}splits"] = np.array([sample.split for sample in part], np.str_)
        arrays[f"{prefix}added_at"] = np.array([sample.added_at for sample in part], np.float64)
        arrays[f"{prefix}inputs"] = _stack([sample.input for sample in part])
    arrays["targets"] = _stack([s.target for s in parts[0] if s.target is not None])
    with to.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # the stub has no **arrays


def _stack(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        raise StoreError(
            "samples of several shapes or dtypes do not fit one .npz: export to .parquet"
        )
    return np.stack(arrays) if arrays else np.zeros(0, np.float32)


_WRITERS: dict[str, Callable[[_Counter, Path], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
}
