"""Asked by messages or trained as whole cohorts, the same clients give the same model."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.ledger import MemoryLedger
from simulation.cohort_grid import CohortSimulationGrid
from simulation.nodes import node_of
from simulation.state_store import StateStore
from tests.tiny_task import TinyTask
from tests.unit.simulation.engine.engine_runs import (
    NUM_CLIENTS,
    PRIVATE,
    Run,
    TroubledTask,
    configure,
    run,
)

EQUAL = ("num_selected", "num_accepted", "num_stale", "refused")
CLOSE = ("uplink_bits", "uplink_distortion")


def both(tmp_path: Path, task: TinyTask | None = None, **sections: Any) -> tuple[Run, Run]:
    """Return the run by messages and the run by cohorts."""
    engine = sections.pop("engine", {})
    one_by_one, together = (
        run(configure(tmp_path / name, engine={**engine, "cohorts": cohorts}, **sections), task)
        for name, cohorts in (("messages", False), ("cohorts", True))
    )
    return one_by_one, together


def assert_same_evaluation(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, float):
            assert found[key] == pytest.approx(value, abs=1e-5)
        else:
            assert found[key] == value


def assert_equal(one_by_one: Run, together: Run, *, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(together.weights, one_by_one.weights, rtol=0, atol=atol)
    assert len(one_by_one.rounds) == len(together.rounds)
    for expected, found in zip(one_by_one.rounds, together.rounds, strict=True):
        assert {key: found[key] for key in EQUAL} == {key: expected[key] for key in EQUAL}
        assert found["epsilon"] == expected["epsilon"]
        assert_same_evaluation(found["evaluation"] or {}, expected["evaluation"] or {})
        for key in CLOSE:
            assert found[key] == pytest.approx(expected[key], rel=1e-4)


HEAD = ["3.*"]
METHODS: dict[str, dict[str, Any]] = {
    "weighted-mean": {},
    "bounded-mean": {"aggregation": {"aggregator": "bounded-mean"}},
    "median": {"aggregation": {"aggregator": "median"}},
    "fednova": {"aggregation": {"aggregator": "fednova"}},
    "scaffold": {
        "aggregation": {"aggregator": "scaffold"},
        "train": {"client_term": "scaffold"},
        "rounds": {"cohort_size": 36},
    },
    "fedprox": {"train": {"client_term": "fedprox", "proximal_mu": 0.5}},
    "int8": {"aggregation": {"codec": "int8"}},
    "error feedback": {"aggregation": {"codec": "topk:0.3+int8"}},
    "momentum": {"train": {"momentum": 0.9, "weight_decay": 0.01}},
    "adam": {"train": {"optimizer": "adam", "learning_rate": 0.01}},
    "a lossy downlink": {"aggregation": {"downlink_codec": "int8"}},
    "refusals": {"aggregation": {"max_norm": 0.6}},
    "few of many": {"rounds": {"cohort_size": 7}},
    "central privacy": {
        "aggregation": {"aggregator": "private-mean"},
        "rounds": {"cohort_size": 35},
        "evaluate": {"every_rounds": 0},
        "central_privacy": {"noise_multiplier": 0.5},
    },
    "label-flip": {"attack": {"name": "label-flip", "fraction": 0.3, "num_classes": 3}},
    "local privacy": {"privacy": PRIVATE},
    "local privacy with error feedback": {
        "privacy": PRIVATE,
        "aggregation": {"codec": "topk:0.3+f32"},
        "rounds": {"cohort_size": 36},
    },
    "personal layers": {"train": {"personal_layers": HEAD}},
    "personal layers of few of many": {
        "train": {"personal_layers": HEAD, "client_term": "fedprox", "proximal_mu": 0.5},
        "rounds": {"cohort_size": 7},
    },
    "personal layers with scaffold": {
        "aggregation": {"aggregator": "scaffold", "codec": "rotate+eden:2"},
        "train": {"client_term": "scaffold", "personal_layers": HEAD},
        "rounds": {"cohort_size": 36},
    },
    "personal layers with error feedback": {
        "train": {"personal_layers": HEAD},
        "aggregation": {"codec": "topk:0.3+int8"},
        "rounds": {"cohort_size": 36},
    },
    "personal layers with local privacy": {
        "train": {"personal_layers": HEAD},
        "privacy": PRIVATE,
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_both_paths_give_the_same_model(tmp_path: Path, method: str) -> None:
    one_by_one, together = both(tmp_path, **METHODS[method])
    assert_equal(one_by_one, together)
    assert len(set(together.digests)) == 3  # something was learnt in every round
    if method == "refusals":
        assert all(0 < entry["refused"]["norm"] < NUM_CLIENTS for entry in together.rounds)
    if "privacy" in METHODS[method]:
        assert together.rounds[0]["epsilon"] != together.rounds[-1]["epsilon"] != {}


@pytest.mark.parametrize("backend", ["sequential", "auto"])
def test_whatever_trains_the_cohort_it_is_the_same_model(tmp_path: Path, backend: str) -> None:
    assert_equal(*both(tmp_path, engine={"backend": backend}, rounds={"num_rounds": 2}))


@pytest.mark.parametrize("privacy", [{"enabled": False}, PRIVATE], ids=["plain", "private"])
def test_clients_that_cannot_train_are_counted_and_harm_no_other(
    tmp_path: Path, privacy: dict[str, Any]
) -> None:
    one_by_one, together = both(tmp_path, TroubledTask(), privacy=privacy, rounds={"num_rounds": 1})
    assert_equal(one_by_one, together)
    (entry,) = together.rounds
    assert entry["num_accepted"] == NUM_CLIENTS - 4
    assert entry["refused"] == {"task": 2, "no-data": 1, "client-error": 1}


def test_the_first_traceback_is_shown_in_full_and_only_once(tmp_path: Path) -> None:
    found = run(configure(tmp_path, rounds={"num_rounds": 2}), TroubledTask())
    (event,) = [event for event in found.events if event["kind"] == "client-error"]
    assert event["node"] == node_of(7)
    assert "Traceback" in event["detail"]
    assert "ValueError: the file of client 7 is broken" in event["detail"]
    assert [entry["refused"]["client-error"] for entry in found.rounds] == [1, 1]


def test_a_client_that_fails_in_training_leaves_its_reservation_in_the_ledger(
    tmp_path: Path,
) -> None:
    for cohorts in (False, True):
        config = configure(
            tmp_path / str(cohorts),
            rounds={"num_rounds": 1},
            privacy=PRIVATE,
            engine={"cohorts": cohorts},
        )
        run(config, TroubledTask())
        path = config.server.run_dir / "clients.db"
        with closing(StateStore(path, last_committed=1, limit_bytes=1 << 20)) as store:
            states = store.get(range(NUM_CLIENTS))
        assert MemoryLedger.from_json(states[3].ledger).account() is not None  # its data are NaN
        assert sorted(set(range(NUM_CLIENTS)) - states.keys()) == [5, 7, 9]


LAB = {"preset": "lab", "examples_per_s": [50.0], "speed_sigma": [0.8]}
PHONES = {
    "preset": "phones",
    "availability": {"name": "always"},
    "dropout_rate": [0.2],
    "crash_rate": [0.1],
    "memory_mib": [],
}
POLL_S = 0.01


@pytest.mark.parametrize(
    ("devices", "rounds"),
    [
        (LAB, {"cohort_size": 15, "over_selection": 1.6}),
        (LAB, {"cohort_size": 30, "deadline_s": 0.7, "quorum": 0.1}),
        (PHONES, {"cohort_size": 12, "over_selection": 2.0}),
        (PHONES, {"cohort_size": 30, "over_selection": 1.2, "deadline_s": 1.0, "quorum": 0.1}),
    ],
    ids=["lab", "lab-deadline", "phones", "phones-deadline"],
)
def test_the_same_devices_answer_in_time(
    tmp_path: Path, devices: dict[str, Any], rounds: dict[str, Any]
) -> None:
    one_by_one, together = both(
        tmp_path,
        devices=devices,
        rounds={"num_rounds": 1, "poll_interval_s": POLL_S, **rounds},
        evaluate={"every_rounds": 0},
    )
    (expected,), (found,) = one_by_one.rounds, together.rounds
    np.testing.assert_allclose(together.weights, one_by_one.weights, rtol=0, atol=1e-6)
    for key in ("num_selected", "num_accepted", "refused"):
        assert found[key] == expected[key]
    assert 0 < found["num_accepted"] <= rounds["cohort_size"]
    costs, expected_costs = found["simulation"], expected["simulation"]
    assert 0 <= expected_costs["virtual_s"] - costs["virtual_s"] <= POLL_S
    assert costs["virtual_s"] <= rounds.get("deadline_s", 60.0)
    assert costs["bytes_down"] == expected_costs["bytes_down"]
    assert costs["bytes_up"] == expected_costs["bytes_up"]
    assert sum(costs["outcomes"].values()) == found["num_selected"]
    failed = {"drop-out", "crash"} & costs["outcomes"].keys()
    assert bool(failed) == (devices is PHONES)
    for name in failed:
        assert costs["outcomes"][name] == expected_costs["outcomes"][name]


def cohorts_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> int:
    """Return how many cohorts a run of one round sends in one call."""
    num = 0
    train = CohortSimulationGrid.train_cohort

    def counted(grid: CohortSimulationGrid, *arguments: Any) -> Any:
        nonlocal num
        num += 1
        return train(grid, *arguments)

    monkeypatch.setattr(CohortSimulationGrid, "train_cohort", counted)
    found = run(configure(tmp_path, **{"rounds": {"num_rounds": 1}, **sections}))
    assert found.rounds[0]["num_accepted"] > 0
    return num


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, 1),
        ({"attack": {"name": "label-flip"}}, 1),
        ({"attack": {"name": "ipm"}}, 0),
        ({"aggregation": {"max_staleness": 2}}, 0),
        ({"engine": {"cohorts": False}}, 0),
    ],
    ids=["default", "poisoned data", "collusion", "staleness", "off"],
)
def test_methods_that_need_messages_use_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any],
    expected: int,
) -> None:
    assert cohorts_sent(tmp_path, monkeypatch, **sections) == expected
