"""A simulation that was cut off in a round ends as if it had not been."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.checkpoint import Checkpoint, CheckpointStore
from server.round_commit import RoundCommit
from simulation.engine.contracts import SHARD_SIZE
from simulation.settings import SimulateConfig
from simulation.state_store import StateStore, StoredState
from tests.unit.simulation.engine.engine_runs import (
    NUM_CLIENTS,
    PRIVATE,
    SEED,
    Run,
    configure,
    run,
)

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


def test_a_resumed_run_keeps_its_seed_whatever_the_configuration_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(configure(tmp_path / "whole", rounds={"num_rounds": 2}))
    run(configure(tmp_path / "cut", rounds={"num_rounds": 1}))
    config = configure(tmp_path / "cut", rounds={"num_rounds": 2})
    with caplog.at_level(logging.WARNING):
        resumed = run(replace(config, server=replace(config.server, seed=SEED + 1)))
    assert f"seed = {SEED + 1} is ignored" in caplog.text
    assert resumed.digests == whole.digests


def test_a_resumed_run_waits_for_no_more_clients_than_one_that_was_not_cut_off(
    tmp_path: Path,
) -> None:
    """Most clients leave in the first round: min_devices is of the run's, not the process's."""
    trace = tmp_path / "trace.csv"
    lines = ["client,start_s,end_s"]
    lines += [f"{c},0,{1e6 if c < 5 else 1.0}" for c in range(NUM_CLIENTS)]
    lines += [f"{c},400,1000000" for c in range(5, NUM_CLIENTS)]
    trace.write_text("\n".join(lines))

    def configured(folder: str, num_rounds: int) -> SimulateConfig:
        return configure(
            tmp_path / folder,
            rounds={"num_rounds": num_rounds, "min_devices": 30, "quorum": 0.1},
            devices={
                "preset": "lab",
                "examples_per_s": [5.0],
                "availability": {"name": "trace", "trace": str(trace)},
            },
            evaluate={"every_rounds": 0},
        )

    whole = run(configured("whole", 2))
    run(configured("cut", 1))
    resumed = run(configured("cut", 2))
    assert [entry["num_selected"] for entry in whole.rounds] == [NUM_CLIENTS, 5]
    assert resumed.digests == whole.digests
    assert costs(resumed) == costs(whole)


def test_memories_that_make_way_are_the_same_whatever_the_workers_and_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit is far below what the clients remember, so that every round drops some."""
    monkeypatch.setattr("simulation.runner._MIB", 1 << 10)

    def configured(folder: str, workers: int, num_rounds: int = 4) -> SimulateConfig:
        return configure(
            tmp_path / folder,
            num_clients=100,
            rounds={"num_rounds": num_rounds},
            aggregation={"codec": "topk:0.1+f32"},
            evaluate={"every_rounds": 0},
            engine={"workers": workers, "state_limit_mib": 8},
        )

    whole = run(configured("whole", 1))
    assert "engine.state_limit_mib" in caplog.text
    assert run(configured("three", 3)).digests == whole.digests
    run(configured("cut", 1, num_rounds=2))
    assert run(configured("cut", 2)).digests == whole.digests


@pytest.mark.parametrize("cohorts", [True, False], ids=["cohorts", "messages"])
@pytest.mark.parametrize("privacy", [{"enabled": False}, PRIVATE], ids=["plain", "private"])
def test_personal_layers_outlive_a_run_that_was_cut_off(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    privacy: dict[str, Any],
    cohorts: bool,
) -> None:
    """What a round that was not committed made of them is forgotten, and no more than that."""

    def configured(folder: str) -> SimulateConfig:
        return configure(
            tmp_path / folder,
            rounds={"num_rounds": 4, "cohort_size": 35},
            train={"personal_layers": ["3.*"]},
            privacy=privacy,
            engine={"cohorts": cohorts},
        )

    whole = run(configured("whole"))
    commit = RoundCommit.commit

    def interrupted(self: RoundCommit, state: Checkpoint, *others: Any) -> Checkpoint:
        if state.round == 3:
            raise KeyboardInterrupt
        return commit(self, state, *others)

    with monkeypatch.context() as patched:
        patched.setattr(RoundCommit, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(configured("cut"))
    resumed = run(configured("cut"))
    assert resumed.digests == whole.digests
    assert [each["evaluation"] for each in resumed.rounds] == [
        each["evaluation"] for each in whole.rounds
    ]
    assert len(set(whole.digests)) == 4
