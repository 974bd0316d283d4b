"""Gradients of a mesh: sums over the copies of a model, the norm over all of it, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from server.trainer.parallel.mesh import Mesh
from server.trainer.parallel.pieces import Piece

BUCKET_BYTES = 64 * 1024**2


@torch.no_grad()
def sum_over_copies(pieces: Sequence[Piece], mesh: Mesh) -> None:
    """Replace each gradient by its sum over the replicate dimension, many in one collective."""
    if mesh.degrees.replicate == 1:
        return
    for bucket in _buckets([piece.local_grad() for piece in pieces]):
        summed = mesh.add_up(torch.cat([grad.reshape(-1) for grad in bucket]), "replicate")
        parts = torch.split(summed, [grad.numel() for grad in bucket])
        for grad, part in zip(bucket, parts, strict=True):
            grad.copy_(part.view_as(grad))


@torch.no_grad()
def gradient_norm(pieces: Sequence[Piece], mesh: Mesh) -> float:
    """Return the norm of all gradients of all stages, each counted once."""
    squares = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for piece in pieces:
        grad = piece.local_grad()
        if piece.is_owner:
            squares += grad.square().sum()
    return math.sqrt(mesh.add_up(squares).item())


@torch.no_grad()
def clip(pieces: Sequence[Piece], norm: float, max_norm: float) -> None:
    """Scale gradients of this norm down to ``max_norm``; smaller ones stay as they are."""
    if norm > max_norm:
        for piece in pieces:
            piece.local_grad().mul_(max_norm / norm)


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients in groups of one dtype and about 64 MiB; the same on every copy."""
    bucket: list[Tensor] = []
    size = 0
    for grad in grads:
        if bucket and (size >= BUCKET_BYTES or grad.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(grad)
        size += grad.numel() * grad.element_size()
    if bucket:
        yield bucket
