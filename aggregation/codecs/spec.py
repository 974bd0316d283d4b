"""Codecs by their written form, such as ``topk:0.05+int8``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

# Importing a module of stages registers them.
from aggregation.codecs import eden, halves, quantize, selections, signs  # noqa: F401
from aggregation.codecs.blocks import BlockCoder
from aggregation.codecs.coders import GRIDS, SELECTIONS, VALUE_CODERS, Selection, ValueCoder
from aggregation.codecs.dense import DenseCodec
from aggregation.codecs.feedback import ErrorFeedback
from aggregation.codecs.raw import RawCodec
from aggregation.codecs.sparse import SparseCoder, SummarisedCoder
from aggregation.contracts import Codec
from fedge.errors import ConfigError

_LONGEST = 64
_ROTATE = "rotate"
_SIGNS = "signs"
_ALLOWED = (
    "raw, or [topk:SHARE+ or randomk:SHARE+] and one of f32, f16, bf16, int8, int4, rotate+int8, "
    "rotate+int4, rotate+eden:1 to rotate+eden:4, signs:SHARE; behind topk or randomk and such a "
    "stage +signs:SHARE sends a summary of the rest"
)


@lru_cache(maxsize=64)
def parse(spec: str) -> Codec[Any]:
    """Return the codec of a written form; codecs hold no state, so one serves everybody.

    Raises:
        ConfigError: it is none; the text says what is allowed.
    """
    if spec == "raw":
        return RawCodec()
    try:
        if len(spec) > _LONGEST:
            raise ConfigError(f"longer than {_LONGEST} characters")
        stages = [_split(stage) for stage in spec.split("+")]
        if stages[0][0] in SELECTIONS:
            name, option = stages[0]
            return _sparse_codec(spec, SELECTIONS[name](option), stages[1:])
        return DenseCodec(spec, _value_coder(stages))
    except ConfigError as error:
        raise ConfigError(f"no codec: {spec[:_LONGEST]!r} ({error}); allowed: {_ALLOWED}") from None


def _split(stage: str) -> tuple[str, str]:
    name, colon, option = stage.partition(":")
    if colon and not option:
        raise ConfigError(f"{name}: without an option")
    return name, option


def _sparse_codec(spec: str, selection: Selection, stages: list[tuple[str, str]]) -> Codec[Any]:
    if len(stages) > 1 and stages[-1][0] == _SIGNS:
        sparse = SparseCoder(selection, _value_coder(stages[:-1]))
        return DenseCodec(spec, SummarisedCoder(sparse, _value_coder(stages[-1:])))
    return ErrorFeedback(spec, SparseCoder(selection, _value_coder(stages)))


def _value_coder(stages: list[tuple[str, str]]) -> ValueCoder:
    rotated = bool(stages) and stages[0] == (_ROTATE, "")
    if rotated:
        stages = stages[1:]
    if len(stages) != 1:
        raise ConfigError("one stage must say how values are written, and be the last")
    name, option = stages[0]
    if name in GRIDS:
        grid = GRIDS[name](option)
        if grid.needs_rotation and not rotated:
            raise ConfigError(f"{name!r} stands only behind rotate")
        return BlockCoder(grid, rotated=rotated)
    if rotated or name not in VALUE_CODERS:
        raise ConfigError(f"{name!r} cannot stand {'behind rotate' if rotated else 'there'}")
    return VALUE_CODERS[name](option)
