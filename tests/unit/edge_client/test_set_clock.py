"""A device's clock that is set back, as on a board without a battery."""

from pathlib import Path

import numpy as np

from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig

YEAR_S = 365 * 86400.0


def test_samples_survive_a_clock_that_is_set_back_and_right_again(tmp_path: Path) -> None:
    now = [1.8e9]
    config = StoreConfig(max_age_s=YEAR_S, holdout_fraction=0.0)
    one = np.ones(3, np.float32)
    with SampleDatabase(tmp_path / "samples.db", config, clock=lambda: now[0]) as samples:
        samples.add("before", one)
        now[0] -= YEAR_S / 2
        samples.add("while-wrong", one, 1)
        samples.label("before", 2)
        assert samples.counts() == (2, 0)
        now[0] += YEAR_S / 2
        samples.add("after", one)
        assert samples.counts() == (2, 1)
    now[0] = 0.0
    with SampleDatabase(tmp_path / "samples.db", config, clock=lambda: now[0]) as samples:
        assert samples.counts() == (2, 1)
        samples.add("in-1970", one)
        assert samples.counts() == (2, 2)
        assert len(samples.labelled("train").inputs) == 2
