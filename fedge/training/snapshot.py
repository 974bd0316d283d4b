"""Training after a step, whole: what a process that was killed needs to go on from there.

A step whose snapshot was not kept is taken again, with a fresh batch and, under DP, fresh noise.
Nobody ever saw what the lost attempt drew: it was in the memory of a process that is gone, and the
result that leaves the device is made of the steps of the snapshots alone. So no noise is used for
two results, each planned step is in what is released exactly once, and ε is what was reserved.
Draws need no generator to be kept: they come from the operating system's entropy.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedge.task import Examples
from fedge.training.progress import Progress

_MODEL, _OPTIMIZER = "model", "optimizer"
_LENGTH_BYTES = 4

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Training after some steps.

    Attributes:
        arrays: the model's ``state_dict`` and the optimiser's state, by name.
        epoch: epochs begun; 0 under DP, which has none.
        left: positions that are still to come in this epoch, in order.
        examples: fingerprint of the examples that the positions are of.
    """

    progress: Progress
    arrays: Arrays
    epoch: int = 0
    left: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    examples: int = 0

    def to_bytes(self) -> bytes:
        """Return everything as one piece, read back by `from_bytes`."""
        arrays = {**self.arrays, "left": self.left}
        header = {
            "progress": asdict(self.progress),
            "epoch": self.epoch,
            "examples": self.examples,
            "arrays": [(name, array.dtype.str, array.shape) for name, array in arrays.items()],
        }
        text = json.dumps(header).encode()
        parts = [np.ascontiguousarray(array).data for array in arrays.values()]
        return b"".join([len(text).to_bytes(_LENGTH_BYTES, "big"), text, *parts])

    @staticmethod
    def from_bytes(content: bytes) -> Snapshot:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is not a snapshot (KeyError, TypeError too).
        """
        start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "big")
        header = json.loads(content[_LENGTH_BYTES:start])
        arrays: Arrays = {}
        for name, dtype, shape in header["arrays"]:
            count = int(np.prod(shape, dtype=np.int64))
            part = np.frombuffer(content, dtype, count, start).reshape(shape)
            arrays[name], start = part, start + part.nbytes
        left = arrays.pop("left")
        progress = Progress(**header["progress"])
        return Snapshot(progress, arrays, header["epoch"], left, header["examples"])


class Keeper(Protocol):
    """Keeps the newest snapshot of one training."""

    def recall(self) -> Snapshot | None:
        """Return the newest snapshot that is whole; None before the first step."""
        ...

    def keep(self, snapshot: Snapshot) -> None:
        """Keep a snapshot in place of the one before."""
        ...


class Kept:
    """One training's way to its keeper; without one it costs nothing.

    Args:
        keeper: None keeps nothing.
        model, optimizer: written to by `resume`, read by `note`.
        examples: what is trained on.
    """

    def __init__(
        self,
        keeper: Keeper | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        examples: Examples,
    ) -> None:
        self._keeper = keeper
        self._model = model
        self._optimizer = optimizer
        self._examples = 0 if keeper is None else fingerprint(examples)

    def resume(self) -> tuple[Progress, int, torch.Tensor, bool]:
        """Put model and optimiser where the newest snapshot left them.

        Returns:
            Progress, epochs begun, positions left in this epoch, and whether these positions are
            still those of the same examples.
        """
        snapshot = None if self._keeper is None else self._keeper.recall()
        if snapshot is None or not self._put(snapshot.arrays):
            return Progress(), 0, torch.zeros(0, dtype=torch.int64), True
        left = torch.tensor(snapshot.left)
        return snapshot.progress, snapshot.epoch, left, snapshot.examples == self._examples

    def note(self, progress: Progress, epoch: int = 0, left: torch.Tensor | None = None) -> None:
        """Keep where training is now."""
        if self._keeper is None:
            return
        arrays = _arrays_of(self._model, self._optimizer)
        positions = np.zeros(0, np.int64) if left is None else left.numpy()
        self._keeper.keep(Snapshot(progress, arrays, epoch, positions, self._examples))

    def _put(self, arrays: Mapping[str, npt.NDArray[Any]]) -> bool:
        """Write a snapshot's arrays; False where they are of another model."""
        state = self._model.state_dict()
        own = {f"{_MODEL}.{name}": tensor for name, tensor in state.items()}
        for name, tensor in own.items():
            if name not in arrays or arrays[name].shape != tuple(tensor.shape):
                return False
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(torch.tensor(arrays[name]))
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, array in arrays.items():
            kind, _, rest = name.partition(".")
            if kind == _OPTIMIZER:
                number, _, what = rest.partition(".")
                states.setdefault(int(number), {})[what] = torch.tensor(array)
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})
        return True


def fingerprint(examples: Examples) -> int:
    """Return a number that tells one set of examples from another."""
    inputs = np.ascontiguousarray(examples.inputs)
    return zlib.crc32(np.ascontiguousarray(examples.targets).data, zlib.crc32(inputs.data))


def _arrays_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Arrays:
    """Return views of everything that a step changes."""
    arrays = {
        f"{_MODEL}.{name}": tensor.detach().numpy() for name, tensor in model.state_dict().items()
    }
    for number, state in optimizer.state_dict()["state"].items():
        for what, value in state.items():
            if isinstance(value, torch.Tensor):
                arrays[f"{_OPTIMIZER}.{number}.{what}"] = value.detach().numpy()
    return arrays
