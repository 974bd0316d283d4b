"""A small pre-norm transformer over characters that can be divided and cut (imports torch).

Attention and MLP read the number of heads and hidden units off their weights, so that the same
code runs where tensor parallelism has left a process only some of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

MLP_FACTOR = 4
_INITIAL_STD = 0.02


class Embed(nn.Module):
    """Characters and where they stand."""

    def __init__(self, vocabulary_size: int, context: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary_size, width)
        self.position = nn.Parameter(torch.empty(context, width))
        nn.init.normal_(self.token.weight, std=_INITIAL_STD)
        nn.init.normal_(self.position, std=_INITIAL_STD)

    def forward(self, codes: Tensor) -> Tensor:
        """Return ``[B, T, width]`` for codes ``[B, T]`` of any numeric dtype."""
        embedded: Tensor = self.token(codes.long())
        return embedded + self.position[: codes.shape[1]]


class Attention(nn.Module):
    """Causal self-attention.

    Queries, keys and values have no bias: a key's bias moves no output, and Adam would blow its
    rounding error up to full steps.
    """

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.query, self.key, self.value = (_linear(width, width) for _ in range(3))
        self.out = _linear(width, width, depth=depth)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, width]``; each place sees itself and those before it."""
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = _attend(query, key, value).transpose(1, 2).flatten(2)
        out: Tensor = self.out(mixed)
        return out


class Mlp(nn.Module):
    """Two layers with a GELU between them, four times as wide inside."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.up = _linear(width, MLP_FACTOR * width, bias=True)
        self.down = _linear(MLP_FACTOR * width, width, bias=True, depth=depth)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, width]``."""
        out: Tensor = self.down(functional.gelu(self.up(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each added to what came in."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, depth)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, depth)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, width]``."""
        x = x + self.attention(self.attention_norm(x))
        added: Tensor = x + self.mlp(self.mlp_norm(x))
        return added


class Head(nn.Module):
    """Norm and logits."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.logits = _linear(width, vocabulary_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, V]``."""
        logits: Tensor = self.logits(self.norm(x))
        return logits


class CharTransformer(nn.Module):
    """Next-character logits ``[B, T, V]`` for codes ``[B, T]``, T up to the context."""

    def __init__(
        self, *, vocabulary_size: int, context: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.embed = Embed(vocabulary_size, context, width)
        self.blocks = nn.ModuleList(Block(width, heads, depth) for _ in range(depth))
        self.head = Head(width, vocabulary_size)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the logits at each place, ``[B, T, V]``."""
        x = self.embed(codes)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def _linear(inputs: int, outputs: int, *, bias: bool = False, depth: int = 0) -> nn.Linear:
    """Return a layer with small weights, smaller yet where 2 × depth of them add up."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=_INITIAL_STD / math.sqrt(max(1, 2 * depth)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return causal attention, ``[B, H, T, head width]``.

    On a GPU by torch's fused kernel. Its CPU version has no rule for vmap, by which clients are
    trained side by side, and the plain form is no slower at the contexts a CPU can afford.
    """
    if query.is_cuda:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    size = query.shape[-2]
    unseen = torch.ones(size, size, dtype=torch.bool, device=query.device).triu(1)
    return scores.masked_fill(unseen, -math.inf).softmax(dim=-1) @ value
