"""What is learnt: the Task protocol, its data, and its loader.

Torch types appear only here and in training. A task is named in a configuration as
``module:attribute``; the attribute is a Task or a callable without arguments that makes one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy.typing as npt

from fedge.errors import ConfigError, FedgeError, TaskError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

Split = Literal["train", "holdout"]


@dataclass(frozen=True)
class Examples:
    """Labelled examples in memory.

    Attributes:
        inputs: ``[N, ...]``, any numeric dtype the model takes.
        targets: ``[N, ...]``.
    """

    inputs: npt.NDArray[Any]
    targets: npt.NDArray[Any]

    def __post_init__(self) -> None:
        """Refuse inputs and targets of different lengths."""
        if len(self.inputs) != len(self.targets):
            raise TaskError(f"{len(self.inputs)} inputs but {len(self.targets)} targets")

    def __len__(self) -> int:
        """Return N."""
        return len(self.inputs)

    def subset(self, index: npt.NDArray[Any]) -> Examples:
        """Return the examples at these positions (or where a mask is True)."""
        return Examples(self.inputs[index], self.targets[index])


@dataclass(frozen=True)
class CloudData:
    """The cloud's three disjoint shares.

    Attributes:
        proxy: refined on.
        gate: decides whether a refinement is kept; never leaves the server.
        test: decides nothing and is the one reported; never leaves the server.
        unlabelled: further inputs to refine on by distillation, ``[N, ...]``; None is none.
    """

    proxy: Examples
    gate: Examples
    test: Examples
    unlabelled: npt.NDArray[Any] | None = None


class SampleStore(Protocol):
    """What a task sees of a device's stored samples."""

    def labelled(self, split: Split) -> Examples:
        """Return the labelled samples of one stable split (by sample id)."""
        ...


@dataclass(frozen=True)
class EdgeFiles:
    """A task's TFLite template and weight-swapping plan.

    Attributes:
        template: path of the ``.tflite`` file.
        plan: path of the plan's JSON.
    """

    template: Path
    plan: Path


@runtime_checkable
class Task(Protocol):
    """One learning problem: model, loss, metrics and where its data come from."""

    @property
    def name(self) -> str:
        """Name of the task, as it stands in logs and manifests."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example, without the batch dimension."""
        ...

    def build_model(self) -> nn.Module:
        """Return a fresh model; no BatchNorm, every tensor float32."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an example, ``[B]``."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return batch means by name; ``accuracy`` where it means something."""
        ...

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Return one client's examples, for simulation and demo."""
        ...

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        """Return what a real device trains (or evaluates) on."""
        ...

    def cloud_data(self) -> CloudData:
        """Return the cloud's disjoint shares."""
        ...

    def edge_files(self) -> EdgeFiles | None:
        """Return the shipped template and plan, or None: then the server converts once."""
        ...


def load_task(reference: str, **options: Any) -> Task:
    """Load a task named ``module:attribute``; options go to the attribute if it is callable.

    Raises:
        ConfigError: the reference cannot be imported or is not a task.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{reference!r} is not of the form module:attribute", key="task.name")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # the module is the user's: whatever it raises is its error
        raise ConfigError(_say("loaded", reference, error), key="task.name") from error
    if options and not callable(found):
        raise ConfigError(f"{reference!r} is an object and takes no options", key="task.options")
    try:
        task = found(**options) if callable(found) else found
    except FedgeError:
        raise
    except Exception as error:  # the task is the user's, too
        raise ConfigError(_say("made", reference, error), key="task.name") from error
    if not isinstance(task, Task):
        members = {*Task.__annotations__, *vars(Task)}
        missing = sorted(m for m in members if m[0] != "_" and not hasattr(task, m))
        raise ConfigError(
            f"{reference!r} is a {type(task).__name__}, not a Task: it lacks {', '.join(missing)}",
            key="task.name",
        )
    return task


def _say(done: str, reference: str, error: Exception) -> str:
    return f"{reference!r} cannot be {done}: {type(error).__name__}: {error}"
