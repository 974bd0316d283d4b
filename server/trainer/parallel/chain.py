"""The part of a model that one process computes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.split_plan import SplitPlan


class Stage(nn.Module):
    """Some modules of a model, one after the other, under the names that they have in it."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in self.names:
            _put(self, name, model.get_submodule(name))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last module makes of the first one's input."""
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x


def check_plan(plan: SplitPlan, model: nn.Module) -> None:
    """Refuse a plan that is not this model's.

    Raises:
        TaskError: a module is missing, a tensor belongs to none or several modules of the chain,
            or a layer to divide is not Linear.
    """
    modules = dict(model.named_modules())
    for name in plan.chain:
        if name not in modules:
            raise TaskError(f"split plan: the model has no module {name!r}")
    for tensor in model.state_dict():
        owners = [name for name in plan.chain if tensor.startswith(f"{name}.")]
        if len(owners) != 1:
            raise TaskError(
                f"split plan: tensor {tensor!r} belongs to {len(owners)} modules of the chain"
            )
    divided = [name for name in modules if plan.is_column(name) or plan.is_row(name)]
    for name in divided:
        if not isinstance(modules[name], nn.Linear):
            raise TaskError(f"split plan: {name!r} is no Linear layer and cannot be divided")
    if bool(divided) != bool(plan.column):
        raise TaskError("split plan: no layer is like its column and row patterns")


def has_tied_tensors(model: nn.Module) -> bool:
    """Tell whether one parameter stands under several names."""
    return len(list(model.named_parameters(remove_duplicate=False))) != len(
        list(model.parameters())
    )


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a dotted name, with empty modules on the way."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(last, module)
