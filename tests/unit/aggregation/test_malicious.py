from __future__ import annotations

import pytest

from aggregation.contracts import AggregatorOptions
from aggregation.malicious import check_enough, num_malicious
from fedge.errors import AggregationError


@pytest.mark.parametrize(
    ("fraction", "num_updates", "expected"),
    [(0.2, 5, 1), (0.2, 4, 0), (0.2, 100, 20), (0.29, 100, 29), (0.1, 30, 3), (0.49, 2, 0)],
)
def test_the_assumed_liars_are_the_fraction_rounded_down(
    fraction: float, num_updates: int, expected: int
) -> None:
    options = AggregatorOptions(malicious_fraction=fraction)
    assert num_malicious(options, num_updates) == expected


def test_too_few_updates_are_refused_with_what_to_do() -> None:
    check_enough("bulyan", 11, 2, per_malicious=4, more=3)
    with pytest.raises(AggregationError, match=r"bulyan needs 11 .* 2 hostile .* has 10; .*lower"):
        check_enough("bulyan", 10, 2, per_malicious=4, more=3)
