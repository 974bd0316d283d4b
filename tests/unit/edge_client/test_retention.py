from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig

SMALL, LARGE = 100, 220  # floats
ONES = np.ones(SMALL, np.float32)
MAX_BYTES = 4096  # seven small samples


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def config_of(retention: str, **options: Any) -> StoreConfig:
    return StoreConfig(
        max_bytes=MAX_BYTES,
        holdout_fraction=0.0,
        retention=retention,
        **options,
    )


@pytest.fixture
def recent(tmp_path: Path) -> Iterator[SampleDatabase]:
    with SampleDatabase(tmp_path / "samples.db", config_of("recency")) as database:
        yield database


def stored(samples: SampleDatabase) -> list[int]:
    return [int(target) for target in samples.labelled("train").targets]


def count_kept(folder: Path, sizes: list[int], trials: int) -> np.ndarray:
    """Offer labelled samples of these sizes again and again; return how often each was kept.

    Between trials all of them reach their age, and the reservoir begins anew.
    """
    random, clock = np.random.default_rng(7), Clock()
    kept = np.zeros(len(sizes))
    config = config_of("reservoir", max_age_s=60.0)
    with SampleDatabase(folder / "samples.db", config, clock, random.random) as samples:
        # What is kept is asked here, not whether the disk has it: hundreds of waits are saved.
        samples._connection.execute("PRAGMA synchronous = OFF")
        offered = [
            samples.prepare(f"{index:03}", np.zeros(size, np.float32), index)
            for index, size in enumerate(sizes)
        ]
        for _ in range(trials):
            samples.add_many(offered[:9])
            samples.add_many(offered[9:])
            kept[[int(key) for key in stored_ids(samples)]] += 1
            clock.now_s += 61
    return kept


def stored_ids(samples: SampleDatabase) -> list[str]:
    return [row[0] for row in samples._connection.execute("SELECT id FROM samples")]


def is_uniform(kept: np.ndarray, trials: int) -> bool:
    """Tell by a chi-square test at 0.1 % whether each was kept equally often."""
    share = kept.mean() / trials
    statistic = ((kept - kept.mean()) ** 2).sum() / (kept.mean() * (1 - share))
    return bool(statistic < chi2.ppf(0.999, len(kept) - 1))


def test_a_reservoir_is_a_uniform_sample_of_all_that_was_ever_offered(tmp_path: Path) -> None:
    kept = count_kept(tmp_path, [SMALL] * 25, trials=400)
    assert kept.sum() == 400 * 7
    assert is_uniform(kept, 400)


def test_samples_of_one_size_stay_equally_often_among_others(tmp_path: Path) -> None:
    kept = count_kept(tmp_path, [SMALL, LARGE] * 12, trials=300)
    assert is_uniform(kept[0::2], 300)
    assert is_uniform(kept[1::2], 300)


def test_what_recency_keeps_would_not_pass_for_uniform() -> None:
    kept = np.array([300.0] * 7 + [0.0] * 18)
    assert not is_uniform(kept, 300)


def test_a_reservoir_remembers_its_threshold_over_restarts(tmp_path: Path) -> None:
    path, draws = tmp_path / "samples.db", iter([0.5] * 6 + [0.9, 0.4, 0.7, 0.6])
    for index in range(10):
        config = config_of("reservoir")
        with SampleDatabase(path, config, draw=lambda: next(draws)) as samples:
            samples.add(f"{index}", ONES, index)
            figures, targets = samples.figures(), stored(samples)
    # 0.9 made room for 0.4; nothing above 0.9 came, and 0.7 and 0.6 were the largest in turn.
    assert targets == [0, 1, 2, 3, 4, 5, 7]
    assert figures.offered == 10


def test_a_reservoir_begins_anew_when_age_has_emptied_it(tmp_path: Path) -> None:
    clock, draws = Clock(), iter([0.1] * 30 + [0.99])
    config = config_of("reservoir", max_age_s=60.0)
    path = tmp_path / "samples.db"
    with SampleDatabase(path, config, clock, lambda: next(draws)) as samples:
        for index in range(30):
            samples.add(f"{index}", ONES, index)
        clock.now_s += 61
        samples.add("later", ONES, 99)
        assert stored(samples) == [99]


@pytest.mark.parametrize("retention", ["recency", "reservoir"])
def test_unlabelled_samples_make_room_before_labelled_ones(tmp_path: Path, retention: str) -> None:
    with SampleDatabase(tmp_path / "samples.db", config_of(retention)) as samples:
        for index in range(5):
            samples.add(f"labelled-{index}", ONES, index)
        for index in range(100):
            samples.add(f"unlabelled-{index}", ONES)
        assert stored(samples) == list(range(5))
        assert samples.counts() == (5, 2)


def test_labelled_samples_leave_a_quarter_to_those_that_wait_for_a_label(
    recent: SampleDatabase,
) -> None:
    for index in range(20):
        recent.add(f"labelled-{index}", ONES, index)
    assert recent.counts() == (7, 0)
    for index in range(20):
        recent.add(f"unlabelled-{index}", ONES)
    labelled, unlabelled = recent.counts()
    assert (labelled, unlabelled) == (5, 2)
    assert stored(recent) == [15, 16, 17, 18, 19]
    assert recent.label("unlabelled-19", 99)
    assert 99 in stored(recent)


def test_a_sample_is_offered_to_the_reservoir_once_however_often_it_is_labelled(
    tmp_path: Path,
) -> None:
    with SampleDatabase(tmp_path / "samples.db", config_of("reservoir")) as samples:
        samples.add("a", ONES)
        assert samples.figures().offered == 0
        samples.label("a", 1)
        samples.label("a", 2)
        samples.add("a", ONES, 3)
        assert samples.figures().offered == 1
