import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedge.tflite.strides import Loop, find_loop


def visited(loop: Loop) -> list[tuple[int, int]]:
    return [
        (
            loop.file_start + int(np.dot(index, loop.file_strides)),
            loop.source_start + int(np.dot(index, loop.source_strides)),
        )
        for index in np.ndindex(*loop.dims)
    ]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_any_permuted_tensor_is_one_loop(shape: list[int], random: object) -> None:
    axes = list(range(len(shape)))
    random.shuffle(axes)  # type: ignore[attr-defined]
    source = np.arange(int(np.prod(shape))).reshape(shape).transpose(axes).reshape(-1)
    file = np.arange(len(source)) + 7
    loop = find_loop(file, source)
    assert loop is not None
    assert visited(loop) == list(zip(file.tolist(), source.tolist(), strict=True))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=24, unique=True))
def test_a_loop_that_is_found_visits_exactly_the_pairs(source: list[int]) -> None:
    file = np.arange(len(source))
    loop = find_loop(file, np.array(source))
    if loop is not None:
        assert visited(loop) == list(zip(file.tolist(), source, strict=True))
    else:
        assert len(source) > 2  # one or two pairs always are a loop


def test_a_slice_of_every_row_is_one_loop() -> None:
    source = np.arange(24).reshape(4, 6)[:, 2:5].reshape(-1)
    loop = find_loop(np.arange(12), source)
    assert loop == Loop(0, 2, (4, 3), (3, 1), (6, 1))


def test_disorder_has_no_loop() -> None:
    assert find_loop(np.arange(5), np.array([3, 0, 4, 1, 2])) is None
