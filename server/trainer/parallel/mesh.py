"""The processes as a mesh of (pipeline, replicate, shard, tensor)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fedge.errors import ConfigError
from server.trainer.parallel.degrees import DIMENSIONS, Degrees


class Mesh:
    """Where this process stands among all, and what it says to the others.

    One process alone needs no process group.

    Args:
        device: where this process computes.

    Raises:
        ConfigError: there are not as many processes as the degrees multiply to.
    """

    def __init__(self, degrees: Degrees, device: torch.device) -> None:
        self.degrees = degrees
        self.device = device
        self._mesh: DeviceMesh | None = None
        found = dist.get_world_size() if dist.is_initialized() else 1
        if found != degrees.world_size:
            raise ConfigError(f"{degrees} needs {degrees.world_size} processes, there are {found}")
        if found > 1:
            sizes = tuple(getattr(degrees, name) for name in DIMENSIONS)
            self._mesh = init_device_mesh(device.type, sizes, mesh_dim_names=DIMENSIONS)

    def place(self, dimension: str) -> int:
        """Return this process' index along one dimension."""
        return 0 if self._mesh is None else self._mesh.get_local_rank(dimension)

    @property
    def data_place(self) -> int:
        """Which part of each batch is this process'."""
        return self.place("replicate") * self.degrees.shard + self.place("shard")

    def part(self, *dimensions: str) -> DeviceMesh:
        """Return the mesh of the processes that differ in these dimensions alone."""
        assert self._mesh is not None
        return self._mesh[dimensions if len(dimensions) > 1 else dimensions[0]]

    def group(self, dimension: str) -> dist.ProcessGroup:
        """Return the processes that differ in this dimension alone."""
        return self.part(dimension).get_group()

    def add_up(self, tensor: Tensor, dimension: str | None = None) -> Tensor:
        """Replace a tensor by its sum over one dimension, or over all processes; returns it."""
        if dimension is None:
            if self._mesh is not None:
                dist.all_reduce(tensor)
        elif getattr(self.degrees, dimension) > 1:
            dist.all_reduce(tensor, group=self.group(dimension))
        return tensor
