"""Devices that were asked under DP and came too late have spent all the same."""

from pathlib import Path

from simulation.client_state import ClientState
from simulation.state_store import StateStore
from tests.unit.simulation.engine.engine_runs import NUM_CLIENTS, PRIVATE, configure, run

WANTED = 10


def charged_rounds(run_dir: Path) -> list[int]:
    """Return how many rounds each client's ledger holds."""
    store = StateStore(run_dir / "clients.db", last_committed=99, limit_bytes=1 << 30)
    found = store.get(range(NUM_CLIENTS))
    store.close()
    states = [ClientState(client, found.get(client)) for client in range(NUM_CLIENTS)]
    return [len(state.ledger.entries) for state in states]


def test_whoever_was_asked_has_spent_whether_its_update_counted_or_not(tmp_path: Path) -> None:
    rounds = {"num_rounds": 1, "cohort_size": WANTED, "over_selection": 2.0}
    found = run(configure(tmp_path, privacy=PRIVATE, rounds=rounds, evaluate={"every_rounds": 0}))
    (entry,) = found.rounds
    assert entry["num_selected"] == 2 * WANTED
    assert entry["num_accepted"] == WANTED
    assert entry["num_late"] == WANTED
    assert sorted(charged_rounds(tmp_path), reverse=True)[: 2 * WANTED] == [1] * (2 * WANTED)
    assert sum(charged_rounds(tmp_path)) == 2 * WANTED


def test_without_privacy_nobody_has_a_ledger(tmp_path: Path) -> None:
    rounds = {"num_rounds": 1, "cohort_size": WANTED, "over_selection": 2.0}
    run(configure(tmp_path, rounds=rounds, evaluate={"every_rounds": 0}))
    assert not (tmp_path / "clients.db").exists()


def test_devices_that_drop_out_have_spent_asked_by_messages_or_as_a_cohort(tmp_path: Path) -> None:
    for cohorts in (False, True):
        folder = tmp_path / str(cohorts)
        found = run(
            configure(
                folder,
                privacy=PRIVATE,
                rounds={"num_rounds": 1},
                devices={"preset": "lab", "dropout_rate": [0.5]},
                evaluate={"every_rounds": 0},
                engine={"cohorts": cohorts},
            )
        )
        outcomes = found.rounds[0]["simulation"]["outcomes"]
        assert outcomes["drop-out"] > 0
        assert charged_rounds(folder) == [1] * NUM_CLIENTS
