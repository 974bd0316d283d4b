"""A simulation that was cut off in a round ends as if it had not been."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from server.checkpoint import CheckpointStore
from simulation.engine.contracts import SHARD_SIZE
from simulation.settings import SimulateConfig
from simulation.state_store import StateStore, StoredState
from tests.unit.simulation.engine.engine_runs import PRIVATE, Run, configure, run

OWN_TO_THE_PROCESS = ("clients_per_s", "rss_bytes", "peak_rss_bytes")


def configured(run_dir: Path) -> SimulateConfig:
    """Return a run in which everything has something to carry on: clients, devices and time."""
    return configure(
        run_dir,
        num_clients=150,
        rounds={"cohort_size": 40, "over_selection": 1.4, "deadline_s": 9.0, "quorum": 0.1},
        train={"local_epochs": 1, "batch_size": 8},
        aggregation={"aggregator": "bounded-mean", "codec": "topk:0.3+int8"},
        privacy=PRIVATE,
        devices={"preset": "phones", "examples_per_s": [4.0]},
        evaluate={"every_rounds": 0},
    )


def costs(found: Run) -> list[dict[str, Any]]:
    """Return what the rounds cost in virtual time."""
    return [
        {key: value for key, value in entry["simulation"].items() if key not in OWN_TO_THE_PROCESS}
        for entry in found.rounds
    ]


def test_a_private_run_on_phones_that_was_cut_off_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(configured(tmp_path / "whole"))
    put, seen = StateStore.put, Counter[int]()

    def interrupted(store: StateStore, round: int, states: Mapping[int, StoredState]) -> None:
        put(store, round, states)
        seen[round] += 1
        if round == 2:
            raise KeyboardInterrupt

    config = configured(tmp_path / "cut")
    with monkeypatch.context() as patched:
        patched.setattr(StateStore, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert seen[2] == 1  # a shard of the second round was on disk, and others were not
    assert CheckpointStore(tmp_path / "cut" / "checkpoints").latest_round() == 1
    resumed = run(config)
    assert [entry["round"] for entry in resumed.rounds] == [1, 2, 3]
    assert resumed.digests == whole.digests
    assert len(set(whole.digests)) == 3
    assert costs(resumed) == costs(whole)
    for one, other in zip(resumed.rounds, whole.rounds, strict=True):
        for key in ("num_selected", "num_accepted", "num_late", "refused", "epsilon"):
            assert one[key] == other[key]
    assert all(entry["num_accepted"] > SHARD_SIZE for entry in whole.rounds)
    outcomes = [entry["outcomes"] for entry in costs(whole)]
    assert any("drop-out" in each for each in outcomes)
    assert any("late" in each for each in outcomes)
