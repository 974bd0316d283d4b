"""A model as the chain of layers that it computes, or why it is not one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from fedge.errors import TaskError


class NotAChain(TaskError):
    """The model is not a chain of layers; the text says which part is in the way."""


_BY_FUNCTION: dict[Any, Callable[..., nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    torch.flatten: lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
}
_BY_METHOD: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "flatten": lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    "contiguous": nn.Identity,
}
_RESHAPES = ("view", "reshape")


class _Tracer(fx.Tracer):
    """Looks into every module but torch's own, and into `Sequential`."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Take torch's layers as they are."""
        return bool(super().is_leaf_module(module, qualified_name))


def chain_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return names and layers in the order in which the model applies them, in training mode.

    Functions (``F.relu``, ``x.view(len(x), -1)``) become the layers that do the same. The layers
    are the model's own where it has them.

    Raises:
        NotAChain: the model branches, joins, or does something that is no layer.
    """
    if type(model) is nn.Sequential:
        # A layer that stands there twice counts twice, which named_children() would hide.
        layers = [(name, layer) for name, layer in model._modules.items() if layer is not None]
        return [entry for name, layer in layers for entry in _inner(name, layer)]
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # tracing runs the user's code on stand-ins for tensors
        raise NotAChain(
            f"the model {type(model).__name__} cannot be traced: {type(error).__name__}: {error}"
        ) from error
    return _walk(graph, dict(model.named_modules()))


def _inner(name: str, layer: nn.Module) -> list[tuple[str, nn.Module]]:
    if type(layer).__module__.startswith("torch.nn.modules") and type(layer) is not nn.Sequential:
        return [(name, layer)]
    return [(f"{name}.{inner}", entry) for inner, entry in chain_of(layer)]


def _walk(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[tuple[str, nn.Module]]:
    """Follow the only tensor from the graph's input to its output."""
    nodes = list(graph.nodes)
    if len([node for node in nodes if node.op == "placeholder"]) != 1:
        raise NotAChain("the model takes more than one input")
    current = nodes[0]
    chain: list[tuple[str, nn.Module]] = []
    for node in nodes[1:]:
        if node.op == "output":
            if node.args != (current,):
                raise NotAChain("the model's output is not its last layer's")
            return chain
        if _is_size(node):
            continue
        if not node.args or node.args[0] is not current or _others(node):
            raise NotAChain(f"{node.name} does not take the layer before it alone")
        chain.append((str(node.target), _layer(node, modules)))
        current = node
    raise NotAChain("the model has no output")


def _is_size(node: fx.Node) -> bool:
    """Tell whether a node only asks for a size: ``x.size(0)``, ``x.shape[0]``."""
    if node.op == "call_method":
        return node.target == "size"
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] == "shape"
    return node.target in (operator.getitem, len) and all(
        _is_size(source) for source in node.all_input_nodes
    )


def _others(node: fx.Node) -> bool:
    return any(not _is_size(source) for source in node.all_input_nodes[1:])


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module:
    if node.op == "call_module":
        return modules[str(node.target)]
    arguments, options = node.args[1:], dict(node.kwargs)
    if node.op == "call_method" and node.target in _RESHAPES:
        return _flatten(node)
    table: dict[Any, Callable[..., nn.Module]] = (
        _BY_FUNCTION if node.op == "call_function" else dict(_BY_METHOD)
    )
    if node.target not in table:
        raise NotAChain(f"{node.name} is no layer that this backend knows")
    try:
        return table[node.target](*arguments, **options)
    except TypeError as error:
        raise NotAChain(f"{node.name}: {error}") from error


def _flatten(node: fx.Node) -> nn.Module:
    """Return the layer for ``x.view(B, -1)``, with B any size that is read off a tensor."""
    shape = node.args[1:]
    if len(shape) == 1 and isinstance(shape[0], tuple):
        shape = shape[0]
    if len(shape) == 2 and isinstance(shape[0], fx.Node) and shape[1] == -1:
        return nn.Flatten()
    if len(shape) == 2 and shape[0] == -1 and isinstance(shape[1], int):
        return Rows(shape[1])
    raise NotAChain(f"{node.name} reshapes in a way that may mix examples")


class Rows(nn.Module):
    """``x.view(-1, width)``: the same as flattening where each example has so many values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
