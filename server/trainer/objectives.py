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
from server.trainer.batches import Aims, Rows
from server.trainer.spec import RefineSpec

TEACHER_BATCH = 256


@dataclass(frozen=True)
class Material:
    """What there is to refine with.

    Attributes:
        proxy: labelled examples; what is held out is not among them.
        unlabelled: further inputs, ``[N, ...]``, or None.
        aggregate: builds the whole model with the weights that refinement begins from.
        device: where a teacher computes.
    """

    proxy: Examples
    unlabelled: npt.NDArray[Any] | None
    aggregate: Callable[[], nn.Module]
    device: torch.device


class Objective(Protocol):
    """One loss an example, and a pull towards the weights that refinement began from.

    Attributes:
        pull: this times (weights - first weights) is added to each gradient; no term of the
            loss, so that a model that is split over processes need not gather its weights.
    """

    pull: float

    def prepare(self, material: Material) -> Rows:
        """Return all rows to draw batches from; called once, before the first step.

        Raises:
            RefineError: the objective does not suit the task.
        """
        ...

    def losses(self, outputs: Tensor, aims: Aims) -> Tensor:
        """Return the losses of a batch, ``[B]``."""
        ...


OBJECTIVES: Registry[Callable[[Task, RefineSpec], Objective]] = Registry("refinement objective")


@OBJECTIVES.register("fine-tune")
class FineTune:
    """The task's own loss on proxy data."""

    pull = 0.0

    def __init__(self, task: Task, spec: RefineSpec) -> None:  # noqa: ARG002
        self._task = task

    def prepare(self, material: Material) -> Rows:
        """Return the proxy data."""
        return Rows(_tensor(material.proxy.inputs), Aims(_tensor(material.proxy.targets)))

    def losses(self, outputs: Tensor, aims: Aims) -> Tensor:
        """Return the task's losses of a batch, ``[B]``."""
        return self._task.loss(outputs, aims.targets)


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

    def prepare(self, material: Material) -> Rows:
        """Return proxy and unlabelled data with the teacher's outputs."""
        proxy, unlabelled = material.proxy, material.unlabelled
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
        teacher = (material.aggregate if build_teacher is None else build_teacher)()
        outputs = _outputs_of(teacher, _tensor(inputs), material.device)
        if outputs.dim() < 2 or outputs.shape[-1] < 2:
            raise RefineError(
                f"distill compares classes, and task {self._task.name} has none in the last "
                f"dimension of its outputs {tuple(outputs.shape)}: take another refine.objective"
            )
        if build_teacher is not None:
            self._check_shape(outputs, material, inputs)
        if not torch.isfinite(outputs).all():
            raise RefineError("the teacher's outputs are not finite")
        return Rows(_tensor(inputs), Aims(_tensor(targets), outputs, labelled))

    def losses(self, outputs: Tensor, aims: Aims) -> Tensor:
        """Return task loss plus weighted divergence, ``[B]``."""
        own = self._task.loss(outputs, aims.targets)
        if aims.labelled is not None:
            own = torch.where(aims.labelled, own, torch.zeros_like(own))
        assert aims.teacher is not None
        return own + self._weight * self._divergence(outputs, aims.teacher)

    def _check_shape(self, teacher: Tensor, material: Material, inputs: npt.NDArray[Any]) -> None:
        """Refuse outputs that are not like the model's; of a pipeline only one rank sees those."""
        ours = _outputs_of(material.aggregate(), _tensor(inputs[:1]), material.device)
        if teacher.shape[1:] != ours.shape[1:]:
            raise RefineError(
                f"the teacher's outputs have the shape {tuple(teacher.shape[1:])}, the model's "
                f"{tuple(ours.shape[1:])}"
            )

    def _divergence(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence from the teacher's classes, ``[B]``."""
        ours = functional.log_softmax(outputs / self._temperature, dim=-1)
        theirs = functional.log_softmax(teacher / self._temperature, dim=-1)
        each = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
        # Gradients shrink with the square of the temperature.
        return self._temperature**2 * each.reshape(len(each), -1).mean(dim=1)


@torch.no_grad()
def _outputs_of(model: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
    """Return the outputs in main memory, without dropout."""
    model.to(device).eval()
    parts = [model(part.to(device)).cpu() for part in torch.split(inputs, TEACHER_BATCH)]
    return torch.cat(parts)


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    """Return a tensor over the same memory, or over a copy of what must not be written to."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
