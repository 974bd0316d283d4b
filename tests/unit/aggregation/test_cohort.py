from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given

from aggregation.cohort import RoundAggregate, aggregator_names, needs_reference
from aggregation.contracts import ClientUpdate
from fedge.errors import AggregationError, ConfigError, UpdateRejected
from tests.unit.aggregation.helpers import (
    CONTEXT,
    LAYOUT,
    OPTIONS,
    client_update,
    close,
    cohorts,
    largest,
)

Deltas = npt.NDArray[np.float64]
ORACLES: dict[str, Callable[[Deltas, list[float]], Deltas]] = {
    "weighted-mean": lambda deltas, weights: np.average(deltas, axis=0, weights=weights),
    "uniform-mean": lambda deltas, _: np.mean(deltas, axis=0),
    "median": lambda deltas, _: np.asarray(np.median(deltas, axis=0)),
}


@pytest.mark.parametrize("name", sorted(ORACLES))
@given(updates=cohorts)
def test_one_object_serves_every_method(
    name: str, tmp_path: Path, updates: list[ClientUpdate]
) -> None:
    with RoundAggregate(name, OPTIONS, LAYOUT, CONTEXT, tmp_path) as aggregate:
        for update in updates:
            aggregate.add(update)
        assert aggregate.num_updates == len(updates)
        delta, memory = aggregate.finish()
    deltas = np.stack([update.delta for update in updates]).astype(np.float64)
    expected = ORACLES[name](deltas, [update.num_examples for update in updates])
    assert close(delta, expected, largest(updates))
    assert delta.dtype == np.float32
    assert memory == {}


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_a_round_without_updates_says_so_and_names_the_round(name: str, tmp_path: Path) -> None:
    with (
        RoundAggregate(name, OPTIONS, LAYOUT, CONTEXT, tmp_path) as aggregate,
        pytest.raises(AggregationError, match="round 3: no update"),
    ):
        aggregate.finish()


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_a_vector_of_another_layout_is_never_broadcast(name: str, tmp_path: Path) -> None:
    with RoundAggregate(name, OPTIONS, LAYOUT, CONTEXT, tmp_path) as aggregate:
        with pytest.raises(UpdateRejected):
            aggregate.add(client_update(1, np.ones(1, np.float32), 1.0))
        assert aggregate.num_updates == 0


def test_an_aggregate_that_overflows_never_becomes_the_model(tmp_path: Path) -> None:
    with RoundAggregate("weighted-mean", OPTIONS, LAYOUT, CONTEXT, tmp_path) as aggregate:
        aggregate.add(client_update(1, np.full(LAYOUT.size, 3e38, np.float32), 1e6))
        with pytest.raises(AggregationError, match="not finite"):
            aggregate.finish()


def test_an_unknown_name_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'nonsense'.*median, .*uniform-mean, weighted-mean"):
        RoundAggregate("nonsense", OPTIONS, LAYOUT, CONTEXT, tmp_path)


def test_a_streaming_method_touches_no_disk(tmp_path: Path) -> None:
    with RoundAggregate("weighted-mean", OPTIONS, LAYOUT, CONTEXT, tmp_path / "spill") as aggregate:
        aggregate.add(client_update(1, np.ones(LAYOUT.size, np.float32), 1.0))
        aggregate.finish()
    assert not (tmp_path / "spill").exists()


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    aggregate = RoundAggregate("median", OPTIONS, LAYOUT, CONTEXT, tmp_path)
    aggregate.close()
    aggregate.close()
    assert list(tmp_path.iterdir()) == []


def test_only_fltrust_needs_the_clouds_own_update() -> None:
    assert [name for name in aggregator_names() if needs_reference(name)] == ["fltrust"]
