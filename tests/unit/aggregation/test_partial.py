"""Shards that are added up apart and merged in order are one aggregate of all."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.cohort import RoundAggregate
from aggregation.contracts import AggregatorOptions, ClientUpdate, Memory, RoundContext
from aggregation.methods import BUFFERED, STREAMING
from aggregation.partial import PartialAggregate, ShardAggregate
from fedge.errors import ConfigError
from fedge.params import Vector
from fedge.privacy.noise import Draws
from tests.unit.aggregation.helpers import CONTEXT, LAYOUT, client_update, cohorts

SHARD_SIZE = 32
MEANS = ("weighted-mean", "uniform-mean")


def options() -> AggregatorOptions:
    """Return options with bounds that bite, and noise that repeats."""
    return AggregatorOptions(
        learning_rate=0.1,
        num_clients=200,
        clip_norm=2.0,
        noise_multiplier=0.3,
        expected_cohort=10,
        draws=Draws.seeded(1),
    )


def updates_of(num: int, seed: int = 0, round: int = 1) -> list[ClientUpdate]:
    rng = np.random.default_rng([seed, round])
    return [
        client_update(
            client,
            (rng.lognormal(0, 1) * rng.standard_normal(LAYOUT.size)).astype(np.float32),
            float(rng.integers(1, 60)),
            num_steps=float(rng.integers(1, 9)),
            discount=float(rng.choice([1.0, 0.5])),
        )
        for client in range(num)
    ]


def in_one(
    name: str, updates: list[ClientUpdate], context: RoundContext, folder: Path
) -> tuple[Vector, Memory]:
    with RoundAggregate(name, options(), LAYOUT, context, folder) as aggregate:
        for update in updates:
            aggregate.add(update)
        return aggregate.finish(np.ones(LAYOUT.size, np.float32))


def partial_of(name: str, updates: list[ClientUpdate], context: RoundContext) -> PartialAggregate:
    """Return a shard's partial aggregate as it comes out of a worker's pipe."""
    shard = ShardAggregate(name, AggregatorOptions(**_without_draws()), LAYOUT, context)
    for update in updates:
        shard.add(update)
    partial: PartialAggregate = pickle.loads(pickle.dumps(shard.partial()))
    return partial


def _without_draws() -> dict[str, Any]:
    return {**options().__dict__, "draws": None}


def in_shards(
    name: str, shards: list[list[ClientUpdate]], context: RoundContext, folder: Path
) -> tuple[Vector, Memory]:
    with RoundAggregate(name, options(), LAYOUT, context, folder) as aggregate:
        for shard in shards:
            aggregate.merge(partial_of(name, shard, context))
        assert aggregate.num_updates == sum(map(len, shards))
        return aggregate.finish(np.ones(LAYOUT.size, np.float32))


def cut(updates: list[ClientUpdate], size: int) -> list[list[ClientUpdate]]:
    return [updates[start : start + size] for start in range(0, len(updates), size)]


def assert_close(found: Any, expected: Any, scale: float) -> None:
    """Compare nested memories of arrays and numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value, scale)
    elif expected is None or isinstance(expected, str):
        assert found == expected
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("name", sorted(STREAMING))
@given(updates=cohorts, size=st.integers(1, 5))
def test_shards_that_are_merged_are_one_aggregate_of_all(
    name: str, tmp_path: Path, updates: list[ClientUpdate], size: int
) -> None:
    expected = in_one(name, updates, CONTEXT, tmp_path)
    found = in_shards(name, cut(updates, size), CONTEXT, tmp_path)
    scale = max(1.0, *(float(np.abs(update.delta).max()) for update in updates))
    assert_close(found[0], expected[0], scale)
    assert_close(found[1], expected[1], scale)


@pytest.mark.parametrize("name", sorted(STREAMING))
def test_what_is_remembered_bounds_the_next_round_the_same(name: str, tmp_path: Path) -> None:
    contexts = [RoundContext(1), RoundContext(1)]
    for round in (1, 2, 3):
        updates = updates_of(70, round=round)
        alone = in_one(name, updates, contexts[0], tmp_path)
        merged = in_shards(name, cut(updates, SHARD_SIZE), contexts[1], tmp_path)
        assert_close(merged[0], alone[0], 1.0)
        contexts = [RoundContext(round + 1, memory=memory) for _, memory in (alone, merged)]


@pytest.mark.parametrize("name", sorted({*STREAMING, *BUFFERED}))
def test_which_worker_made_a_shard_changes_no_bit(name: str, tmp_path: Path) -> None:
    updates = updates_of(3 * SHARD_SIZE)
    first = in_shards(name, cut(updates, SHARD_SIZE), CONTEXT, tmp_path)
    again = in_shards(name, cut(updates, SHARD_SIZE), CONTEXT, tmp_path)
    assert first[0].tobytes() == again[0].tobytes()


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_means_of_whole_shards_are_equal_to_the_last_bit(
    name: str, num_shards: int, tmp_path: Path
) -> None:
    updates = updates_of(num_shards * SHARD_SIZE)
    alone, _ = in_one(name, updates, CONTEXT, tmp_path)
    merged, _ = in_shards(name, cut(updates, SHARD_SIZE), CONTEXT, tmp_path)
    assert merged.tobytes() == alone.tobytes()


@pytest.mark.parametrize("name", sorted(BUFFERED))
def test_a_method_that_needs_all_updates_gets_them_as_they_are(name: str, tmp_path: Path) -> None:
    updates = updates_of(70)
    alone, memory = in_one(name, updates, CONTEXT, tmp_path)
    merged, remembered = in_shards(name, cut(updates, SHARD_SIZE), CONTEXT, tmp_path)
    assert merged.tobytes() == alone.tobytes()
    assert_close(remembered, memory, 1.0)


@pytest.mark.parametrize("name", ["weighted-mean", "bounded-mean", "median"])
def test_a_shard_without_updates_changes_nothing(name: str, tmp_path: Path) -> None:
    updates = updates_of(8)
    alone, _ = in_shards(name, [updates], CONTEXT, tmp_path)
    among, _ = in_shards(name, [[], updates, []], CONTEXT, tmp_path)
    assert among.tobytes() == alone.tobytes()


def test_an_unknown_name_is_refused_before_anything_is_added() -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        ShardAggregate("nonsense", AggregatorOptions(), LAYOUT, CONTEXT)
