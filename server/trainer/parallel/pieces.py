"""What a process holds of each tensor of the model: whole tensors, or its part of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from server.trainer.parallel.mesh import Mesh


@dataclass(frozen=True)
class Piece:
    """One tensor of the model on this process.

    Attributes:
        tensor: a parameter or buffer of the module, whole or a DTensor.
        local: what is here of it, the same memory.
        region: which part of the whole tensor that is.
        is_owner: of the processes that hold this same part, one is: who counts and tells it.
    """

    name: str
    tensor: Tensor
    local: Tensor
    region: tuple[slice, ...]
    is_owner: bool

    @property
    def is_trained(self) -> bool:
        """Tell whether it is a parameter with gradients."""
        return self.tensor.requires_grad

    def local_grad(self) -> Tensor:
        """Return this process' part of the gradient; one that never came is zero."""
        grad = self.tensor.grad
        if grad is None:
            return self.set_local_grad(torch.zeros_like(self.local))
        if isinstance(grad, DTensor):
            assert isinstance(self.tensor, DTensor)
            if grad.placements != self.tensor.placements:  # a sum that nobody has taken yet
                grad = grad.redistribute(placements=self.tensor.placements)
                self.tensor.grad = grad
            return grad.to_local()
        return grad

    def set_local_grad(self, local: Tensor) -> Tensor:
        """Set this process' part of the gradient and return it."""
        self.tensor.grad = self.wrap(local)
        return local

    def wrap(self, local: Tensor) -> Tensor:
        """Return something elementwise beside this piece as the same kind of tensor."""
        if not isinstance(self.tensor, DTensor):
            return local
        return DTensor.from_local(
            local,
            self.tensor.device_mesh,
            self.tensor.placements,
            run_check=False,
            shape=self.tensor.shape,
            stride=self.tensor.stride(),
        )

    @torch.no_grad()
    def write(self, whole: Tensor) -> None:
        """Copy this process' part out of the whole tensor."""
        self.local.copy_(whole[self.region])

    @torch.no_grad()
    def read_into(self, whole: Tensor) -> None:
        """Copy this process' part into the whole tensor, unless another process does."""
        if self.is_owner:
            whole[self.region] = self.local


def pieces_of(module: nn.Module, mesh: Mesh) -> list[Piece]:
    """Return a piece for each entry of the module's ``state_dict``."""
    state = module.state_dict(keep_vars=True)
    return [_piece(name, tensor, mesh) for name, tensor in state.items()]


def _piece(name: str, tensor: Tensor, mesh: Mesh) -> Piece:
    divided: set[str] = set()
    region: tuple[slice, ...] = (slice(None),) * tensor.dim()
    local = tensor.detach()
    if isinstance(tensor, DTensor):
        names = tensor.device_mesh.mesh_dim_names
        assert names is not None
        for dimension, placement in zip(names, tensor.placements, strict=True):
            if isinstance(placement, Shard | _StridedShard):
                divided.add(dimension)
        shape, offset = compute_local_shape_and_global_offset(
            tensor.shape, tensor.device_mesh, tensor.placements
        )
        region = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
        with torch.no_grad():
            local = tensor.to_local()
    whole = [name for name in ("replicate", "shard", "tensor") if name not in divided]
    is_owner = all(mesh.place(dimension) == 0 for dimension in whole)
    return Piece(name, tensor, local, region, is_owner)
