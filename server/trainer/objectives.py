"""What a refinement minimises, picked by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.errors import RefineError
from fedge.naming import Registry
from fedge.task import Examples, Task
from server.trainer.spec import RefineSpec

TEACHER_BATCH = 256


@dataclass(frozen=True)
class Batch:
    """Examples to train on, row by row.

    Attributes:
        inputs, targets: ``[B, ...]``; the targets of unlabelled rows mean nothing.
        teacher: a teacher's outputs for these rows, ``[B, ...]``; None where there is none.
        labelled: which rows have targets, ``[B]``; None is all of them.
    """

    inputs: Tensor
    targets: Tensor
    teacher: Tensor | None = None
    labelled: Tensor | None = None

    def __len__(self) -> int:
        """Return B."""
        return len(self.inputs)

    def rows(self, index: Tensor) -> Batch:
        """Return the rows at these positions."""
        teacher = None if self.teacher is None else self.teacher[index]
        labelled = None if self.labelled is None else self.labelled[index]
        return Batch(self.inputs[index], self.targets[index], teacher, labelled)


class Objective(Protocol):
    """One loss an example, and a pull towards the weights that refinement began from.

    Attributes:
        pull: this times (weights - first weights) is added to each gradient; no term of the
            loss, so that a model that is split over processes need not gather its weights.
    """

    pull: float

    def prepare(
        self, model: nn.Module, proxy: Examples, unlabelled: npt.NDArray[Any] | None
    ) -> Batch:
        """Return all rows to draw batches from; called once, with the first weights.

        Raises:
            RefineError: the objective does not suit the task.
        """
        ...

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the losses of a batch, ``[B]``."""
        ...


OBJECTIVES: Registry[Callable[[Task, RefineSpec], Objective]] = Registry("refinement objective")


@OBJECTIVES.register("fine-tune")
class FineTune:
    """The task's own loss on proxy data."""

    pull = 0.0

    def __init__(self, task: Task, spec: RefineSpec) -> None:  # noqa: ARG002
        self._task = task

    def prepare(
        self,
        model: nn.Module,  # noqa: ARG002
        proxy: Examples,
        unlabelled: npt.NDArray[Any] | None,  # noqa: ARG002
    ) -> Batch:
        """Return the proxy data."""
        return Batch(_tensor(proxy.inputs), _tensor(proxy.targets))

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the task's losses of a batch, ``[B]``."""
        return self._task.loss(outputs, batch.targets)


@OBJECTIVES.register("anchored")
class Anchored:
    """The task's own loss plus mu / 2 times the squared distance from the first weights.

    Source: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020.
    """

    def __init__(self, task: Task, spec: RefineSpec) -> None:
        self.pull = spec.mu
        self._inner = FineTune(task, spec)
        self.prepare = self._inner.prepare
        self.losses = self._inner.losses


@OBJECTIVES.register("distill")
class Distill:
    """The task's own loss on labelled rows plus the divergence from a teacher's on all rows.

    The teacher is what the task's optional ``build_teacher()`` returns, a trained module, or the
    model with its first weights, which it is then kept from forgetting. All rows are the proxy data
    and what unlabelled data there are.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Li and Hoiem,
    Learning without Forgetting, 2016.
    """

    pull = 0.0

    def __init__(self, task: Task, spec: RefineSpec) -> None:
        self._task = task
        self._weight = spec.distill_weight
        self._temperature = spec.temperature

    def prepare(
        self, model: nn.Module, proxy: Examples, unlabelled: npt.NDArray[Any] | None
    ) -> Batch:
        """Return proxy and unlabelled data with the teacher's outputs."""
        inputs, targets = proxy.inputs, proxy.targets
        labelled = None
        if unlabelled is not None:
            filler = np.zeros((len(unlabelled), *targets.shape[1:]), targets.dtype)
            inputs, targets = (
                np.concatenate([inputs, unlabelled]),
                np.concatenate([targets, filler]),
            )
            labelled = torch.arange(len(inputs)) < len(proxy)
        build_teacher = getattr(self._task, "build_teacher", None)
        teacher = model if build_teacher is None else build_teacher()
        outputs = _outputs_of(teacher, _tensor(inputs))
        if outputs.dim() < 2 or outputs.shape[-1] < 2:
            raise RefineError(
                f"distill compares classes, and task {self._task.name} has none in the last "
                f"dimension of its outputs {tuple(outputs.shape)}: take another refine.objective"
            )
        if not torch.isfinite(outputs).all():
            raise RefineError("the teacher's outputs are not finite")
        return Batch(_tensor(inputs), _tensor(targets), outputs, labelled)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return task loss plus weighted divergence, ``[B]``."""
        own = self._task.loss(outputs, batch.targets)
        if batch.labelled is not None:
            own = torch.where(batch.labelled, own, torch.zeros_like(own))
        assert batch.teacher is not None
        return own + self._weight * self._divergence(outputs, batch.teacher)

    def _divergence(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence from the teacher's classes, ``[B]``."""
        if outputs.shape != teacher.shape:
            raise RefineError(
                f"the teacher's outputs have the shape {tuple(teacher.shape[1:])}, the model's "
                f"{tuple(outputs.shape[1:])}"
            )
        ours = functional.log_softmax(outputs / self._temperature, dim=-1)
        theirs = functional.log_softmax(teacher / self._temperature, dim=-1)
        each = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
        # Gradients shrink with the square of the temperature.
        return self._temperature**2 * each.reshape(len(each), -1).mean(dim=1)


@torch.no_grad()
def _outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    was_training = model.training
    model.eval()
    outputs = torch.cat([model(part) for part in torch.split(inputs, TEACHER_BATCH)])
    model.train(was_training)
    return outputs


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    """Return a tensor over the same memory, or over a copy of what must not be written to."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
