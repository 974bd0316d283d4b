"""The converter is played by numpy: it lays weights out between fixed bytes, as converters do."""

from collections.abc import Callable

import numpy as np
import pytest

from fedge.errors import ModelError
from fedge.params import Layout, Vector
from fedge.tflite.buffers import Constant
from fedge.tflite.matching import find_copies, find_unused
from fedge.tflite.patch import Patcher
from fedge.tflite.sentinels import Sentinels
from tests.unit.fedge.tflite.helpers import finish_plan, random_weights

LAYOUT = Layout(("conv", "bias", "gates", "spare"), ((2, 3, 4), (3,), (8, 2), (5,)))
SENTINELS = (Sentinels(LAYOUT.size, 1), Sentinels(LAYOUT.size, 2))
FIXED = np.array([1.0, 0.0, 3.5], np.float32)


def lay_out(weights: Vector) -> list[np.ndarray]:
    tensors = LAYOUT.views(weights)
    gates = tensors["gates"]
    return [
        FIXED,
        tensors["conv"].transpose(0, 2, 1),
        np.concatenate([gates[4:], gates[:4]]),  # two gates swapped: two places, one parameter
        np.concatenate([tensors["bias"], FIXED]),
    ]


def convert(weights: Vector, lay: Callable[[Vector], list[np.ndarray]] = lay_out) -> bytes:
    parts = [np.ascontiguousarray(part).tobytes() for part in lay(weights)]
    return b"head" + b"GAP!".join(parts) + b"tail"


def constants(lay: Callable[[Vector], list[np.ndarray]] = lay_out) -> list[Constant]:
    found, offset = [], 4
    for number, part in enumerate(lay(random_weights(LAYOUT))):
        found.append(Constant(offset, part.nbytes, f"constant-{number}", part.dtype == np.float32))
        offset += part.nbytes + 4
    return found


def find(lay: Callable[[Vector], list[np.ndarray]]) -> object:
    files = (convert(SENTINELS[0].weights, lay), convert(SENTINELS[1].weights, lay))
    return find_copies(LAYOUT, files, constants(lay), SENTINELS)


def test_permuted_and_joined_weights_are_found_and_patching_equals_converting() -> None:
    files = (convert(SENTINELS[0].weights), convert(SENTINELS[1].weights))
    copies = find_copies(LAYOUT, files, constants(), SENTINELS)
    assert {copy.parameter for copy in copies} == {"conv", "gates", "bias"}
    assert find_unused(LAYOUT, copies) == ("spare",)
    plan = finish_plan(files[0], LAYOUT, copies, unused=("spare",))
    weights = random_weights(LAYOUT)
    assert Patcher(files[0], plan).patch(LAYOUT, weights) == convert(weights)


def test_weights_in_no_regular_order_are_refused_by_name() -> None:
    def lay(weights: Vector) -> list[np.ndarray]:
        return [LAYOUT.views(weights)["spare"][[3, 0, 4, 1, 2]]]

    with pytest.raises(ModelError, match="constant-0: spare stands there in no regular order"):
        find(lay)


def test_a_folded_weight_is_refused_with_what_to_do() -> None:
    def lay(weights: Vector) -> list[np.ndarray]:
        return [FIXED, LAYOUT.views(weights)["bias"] * np.float32(2)]

    with pytest.raises(ModelError, match=r"constant-1: 3 of 3 values are not weights.*fold"):
        find(lay)


def test_one_folded_value_among_many_is_refused() -> None:
    def lay(weights: Vector) -> list[np.ndarray]:
        conv = LAYOUT.views(weights)["conv"].copy()
        conv[1, 2, 3] += conv[0, 0, 0]
        return [conv]

    with pytest.raises(ModelError, match="1 of 24 values are not weights"):
        find(lay)


def test_weights_in_another_dtype_are_refused() -> None:
    def lay(weights: Vector) -> list[np.ndarray]:
        return [weights.astype(np.float16)]

    with pytest.raises(ModelError, match="not float32"):
        find(lay)


def test_weights_outside_the_constants_are_refused() -> None:
    files = (convert(SENTINELS[0].weights), convert(SENTINELS[1].weights))
    with pytest.raises(ModelError, match="graph itself depends on the weights"):
        find_copies(LAYOUT, files, constants()[:2], SENTINELS)
