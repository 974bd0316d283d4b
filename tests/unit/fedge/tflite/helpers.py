"""Synthetic templates: any bytes can be one, since a patcher knows nothing of flatbuffers."""

import numpy as np
from hypothesis import strategies as st

from fedge.params import Layout, Vector, vector_digest
from fedge.tflite.copies import Copy
from fedge.tflite.patch import Patcher, skeleton_digest
from fedge.tflite.plan import Plan

HEADER_BYTES = 40
GAP_BYTES = 12
TRAILER_BYTES = 7  # a file's length need not be a multiple of 4


def make_plan(
    layout: Layout,
    *,
    transposed: frozenset[str] = frozenset(),
    unused: tuple[str, ...] = (),
    ties: tuple[tuple[str, str], ...] = (),
    seed: int = 0,
) -> tuple[bytes, Plan]:
    """Return a template of random weights between random gaps, and its plan."""
    rng = np.random.default_rng(seed)
    exempt = {*unused, *(alias for alias, _ in ties)}
    copies, offset = [], HEADER_BYTES
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        size = int(np.prod(shape))
        if name in exempt or size == 0:
            continue
        if name in transposed and len(shape) == 2:
            rows, columns = shape
            copies.append(Copy(name, offset, (columns, rows), (rows, 1), 0, (1, columns)))
        else:
            copies.append(Copy(name, offset, (size,), (1,), 0, (1,)))
        offset += size * 4 + GAP_BYTES
    content = bytearray(rng.bytes(offset + TRAILER_BYTES))
    words = np.frombuffer(content, "<f4", count=len(content) // 4)
    for copy in copies:
        copy.file_view(words)[...] = rng.standard_normal(copy.dims)
    template = bytes(content)
    return template, finish_plan(template, layout, tuple(copies), ties=ties, unused=unused)


def finish_plan(
    template: bytes,
    layout: Layout,
    copies: tuple[Copy, ...],
    *,
    ties: tuple[tuple[str, str], ...] = (),
    unused: tuple[str, ...] = (),
) -> Plan:
    """Return a plan whose hashes fit the template."""
    skeleton = skeleton_digest(template, copies)
    draft = Plan(layout, copies, ties, unused, len(template), skeleton, "")
    shipped = vector_digest(Patcher(template, draft).extract(layout))
    return Plan(layout, copies, ties, unused, len(template), skeleton, shipped)


def random_weights(layout: Layout, seed: int = 1) -> Vector:
    """Return finite weights, all different."""
    return np.random.default_rng(seed).standard_normal(layout.size).astype(np.float32)


def weight_bytes(plan: Plan) -> set[int]:
    """Return every byte of the file that a copy writes, scalar by scalar."""
    found = set()
    for copy in plan.copies:
        for index in np.ndindex(*copy.dims):
            steps = sum(i * step for i, step in zip(index, copy.file_strides, strict=True))
            found |= set(range(copy.offset_bytes + 4 * steps, copy.offset_bytes + 4 * steps + 4))
    return found


def flip_bit(content: bytes, bit: int) -> bytes:
    """Return the content with one bit inverted."""
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << (bit % 8)
    return bytes(damaged)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Draw up to five tensors of up to three dimensions, empty and scalar ones among them."""
    shapes = draw(
        st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=5)
    )
    return Layout(tuple(f"t{number}" for number in range(len(shapes))), tuple(shapes))
