"""Sizes, times and means as a person reads them."""

import pytest

from simulation.quantities import format_bytes, format_duration, mean_and_spread


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**30, "3.0 GiB"),
        (5000 * 2**40, "5000.0 TiB"),
    ],
)
def test_a_size_has_the_largest_unit_that_leaves_one_of_it(size_bytes: int, expected: str) -> None:
    assert format_bytes(size_bytes) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (60, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (90061, "1 d 1 h"),
    ],
)
def test_a_time_has_two_units_at_most(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def test_one_value_has_no_spread() -> None:
    assert mean_and_spread([0.5]) == "0.5000"
    assert mean_and_spread([0.0, 1.0], digits=2) == "0.50 ± 0.71"
