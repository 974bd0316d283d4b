"""Columns and curves."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.report.series import (
    MAX_POINTS,
    at,
    curve,
    deciles,
    largest_epsilon,
    number,
    outcomes,
    total_of,
    virtual_s,
)
from tests.unit.simulation.report.run_folders import metrics_of, simulated


@pytest.mark.parametrize("value", ["0.5", True, None, [], {}, math.inf, math.nan, 10**400])
def test_what_is_no_finite_number_is_nan(value: Any) -> None:
    assert math.isnan(number(value))


def test_a_column_has_a_number_a_round_and_nan_where_it_is_absent() -> None:
    column = at("a.b")([{"a": {"b": 2}}, {"a": None}, {}, {"a": {"b": "x"}}])
    np.testing.assert_array_equal(column, [2, math.nan, math.nan, math.nan])


def test_running_totals_count_a_round_without_a_figure_as_nothing() -> None:
    rounds = [{}, {"down": 3, "up": 1}, {"down": 2}]
    np.testing.assert_array_equal(total_of("down", "up")(rounds), [0, 4, 6])
    assert np.isnan(total_of("left", "right")(rounds)).all()


def test_virtual_time_begins_at_zero_only_where_there_is_any() -> None:
    rounds = [metrics_of(0), simulated(1)]
    np.testing.assert_array_equal(virtual_s(rounds), [0, 60])
    assert np.isnan(virtual_s([metrics_of(0), metrics_of(1)])).all()


def test_the_largest_epsilon_is_that_of_any_node() -> None:
    rounds: list[dict[str, Any]] = [
        {},
        {"epsilon": {}},
        {"epsilon": {"1": 0.5, "2": 2.0, "3": None}},
    ]
    np.testing.assert_array_equal(largest_epsilon(rounds), [math.nan, math.nan, 2.0])


def test_a_curve_is_the_mean_between_the_least_and_the_largest() -> None:
    seeds = [[{"round": 0, "v": 1.0}, {"round": 1, "v": 2.0}], [{"round": 0, "v": 3.0}]]
    drawn = curve(seeds, at("round"), at("v"))
    assert drawn is not None
    # The second seed ends at round 0, and so does what can be compared.
    np.testing.assert_array_equal(drawn.x, [0])
    assert (drawn.mean[0], drawn.low[0], drawn.high[0]) == (2.0, 1.0, 3.0)
    assert drawn.num_seeds == 2


def test_seeds_whose_clocks_differ_are_interpolated_where_they_overlap() -> None:
    one = [{"t": 0, "v": 0.0}, {"t": 10, "v": 10.0}]
    two = [{"t": 0, "v": 0.0}, {"t": 4, "v": 8.0}]
    drawn = curve([one, two], at("t"), at("v"))
    assert drawn is not None
    np.testing.assert_allclose(drawn.x, [0, 4])
    np.testing.assert_allclose(drawn.mean, [0, 6])


def test_there_is_no_curve_without_both_numbers() -> None:
    assert curve([[{"round": 0}]], at("round"), at("v")) is None
    assert curve([[{"t": 0, "v": 1}], [{"t": 5, "v": 1}]], at("t"), at("v")) is None


def test_a_long_run_is_thinned_and_keeps_both_ends() -> None:
    rounds = [{"round": number, "v": number} for number in range(5 * MAX_POINTS)]
    drawn = curve([rounds], at("round"), at("v"))
    assert drawn is not None
    assert drawn.x.size == MAX_POINTS
    assert (drawn.x[0], drawn.x[-1]) == (0, 5 * MAX_POINTS - 1)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), min_size=1, max_size=4))
def test_the_mean_lies_within_the_band_of_any_seeds(values: list[list[float]]) -> None:
    seeds = [[{"round": at_, "v": v} for at_, v in enumerate(each)] for each in values]
    drawn = curve(seeds, at("round"), at("v"))
    assert drawn is not None
    assert drawn.x.size == min(len(each) for each in values)
    slack = 1e-9 * (1 + np.abs(drawn.mean))
    assert (drawn.low <= drawn.mean + slack).all()
    assert (drawn.mean <= drawn.high + slack).all()


def test_outcomes_are_the_mean_over_seeds_in_the_rounds_that_all_have() -> None:
    def line(round: int, **counts: int) -> dict[str, Any]:
        return {"round": round, "simulation": {"outcomes": counts}}

    seeds = [[line(1, ok=4), line(2, ok=2, late=2)], [line(1, ok=2, crash=2)]]
    rounds, counts = outcomes(seeds)
    np.testing.assert_array_equal(rounds, [1])
    assert {name: list(values) for name, values in counts.items()} == {
        "ok": [3.0],
        "crash": [1.0],
        "late": [0.0],
    }
    assert outcomes([[metrics_of(0)]])[1] == {}


def test_deciles_are_those_of_the_last_evaluation() -> None:
    found = deciles([[simulated(1), simulated(2), metrics_of(3)]])
    assert found is not None
    drawn, last = found
    assert last == 2
    np.testing.assert_allclose(drawn.mean, [0.2 + 0.05 * step for step in range(11)])
    assert deciles([[metrics_of(0)]]) is None
