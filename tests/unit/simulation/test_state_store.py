"""What clients carry on lies in one file: bounded, and as old as the last commit."""

import logging
from pathlib import Path

import pytest

from fedge.errors import StoreError
from simulation.state_store import StateStore, StoredState

AMPLE = 1 << 30


def opened(folder: Path, last_committed: int = 0, limit_bytes: int = AMPLE) -> StateStore:
    return StateStore(folder / "c.db", last_committed=last_committed, limit_bytes=limit_bytes)


def state_of(round: int, size: int = 4) -> StoredState:
    return StoredState(f"ledger {round}", bytes([round]) * size)


def test_the_newest_state_of_each_client_is_returned(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(1, {1: state_of(1), 2: state_of(1)})
    store.put(2, {1: state_of(2)})
    assert store.get([1, 2, 3]) == {1: state_of(2), 2: state_of(1)}
    assert store.get([]) == {}
    store.close()
    again = opened(tmp_path, 2)
    assert again.get([2, 1]) == {1: state_of(2), 2: state_of(1)}
    again.close()


def test_rounds_that_were_not_committed_are_forgotten(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for round in (1, 2, 3):
        store.put(round, {1: state_of(round)})
    store.close()
    for committed in (2, 3):  # what was forgotten does not come back
        store = opened(tmp_path, committed)
        assert store.get([1]) == {1: state_of(2)}
        store.close()


def test_a_run_that_starts_over_remembers_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(1, {1: state_of(1)})
    store.close()
    again = opened(tmp_path, 0)
    assert again.get([1]) == {}
    again.close()


def test_two_rounds_of_a_client_are_kept_and_other_clients_are_left_alone(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(1, {1: state_of(1), 11: state_of(1)})
    for round in (9, 10):
        store.put(round, {1: state_of(round)})
    store.close()
    for committed, expected in ((10, state_of(10)), (9, state_of(9))):
        store = opened(tmp_path, committed)
        assert store.get([1, 11]) == {1: expected, 11: state_of(1)}
        store.close()
    store = opened(tmp_path, 8)  # round 1 of client 1 made way for round 10
    assert store.get([1, 11]) == {11: state_of(1)}
    store.close()


def test_a_round_that_is_done_again_replaces_what_it_wrote(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(1, {1: state_of(1)})
    store.put(1, {1: state_of(7)})
    assert store.get([1]) == {1: state_of(7)}
    store.close()


def test_nothing_is_written_where_nothing_is_remembered(tmp_path: Path) -> None:
    store = opened(tmp_path / "run")
    store.put(1, {})
    assert store.get([1, 2]) == {}
    store.close()
    store.close()
    assert not (tmp_path / "run").exists()


def test_many_clients_are_read_and_written_in_one_call(tmp_path: Path) -> None:
    store = opened(tmp_path)
    states = {client: StoredState(str(client)) for client in range(3000)}
    store.put(1, states)
    assert store.get(range(4000)) == states
    store.close()


def test_what_is_given_up_stays_given_up(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(1, {1: state_of(1)})
    store.put(2, {1: StoredState("ledger 2")})
    assert store.get([1]) == {1: StoredState("ledger 2", b"")}
    store.close()
    store = opened(tmp_path, 1)
    assert store.get([1]) == {1: state_of(1)}
    store.close()


def test_the_oldest_memories_make_way_and_never_a_ledger(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path, limit_bytes=1000)
    with caplog.at_level(logging.WARNING):
        for client in range(40):
            store.put(client + 1, {client: state_of(client, size=100)})
            store.trim()
    assert caplog.text.count("engine.state_limit_mib") == 1
    found = store.get(range(40))
    assert {client: state.ledger for client, state in found.items()} == {
        client: f"ledger {client}" for client in range(40)
    }
    kept = [client for client, state in found.items() if state.memory]
    assert kept == list(range(40 - len(kept), 40))
    assert 5 <= len(kept) <= 10
    assert all(found[client] == state_of(client, 100) for client in kept)
    store.close()


def test_a_resumed_store_knows_how_much_it_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path, limit_bytes=1000)
    store.put(1, {client: state_of(1, size=100) for client in range(9)})
    store.close()
    store = opened(tmp_path, 1, limit_bytes=1000)
    assert all(state.memory for state in store.get(range(9)).values())
    store.put(2, {client: state_of(2, size=100) for client in range(9, 12)})
    assert all(state.memory for state in store.get(range(12)).values())  # not before it is told to
    store.trim()
    assert "engine.state_limit_mib" in caplog.text
    assert all(state.memory for state in store.get(range(9, 12)).values())
    assert not store.get([0])[0].memory
    store.close()


def test_memories_that_are_replaced_do_not_count_twice_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path, limit_bytes=1000)
    for round in range(1, 40):
        store.put(round, {1: state_of(round, size=300)})
        store.trim()
    assert caplog.text == ""
    assert store.get([1]) == {1: state_of(39, size=300)}
    store.close()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"c\.db.*server\.run_dir"):
        opened(tmp_path, 1)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = opened(tmp_path / "file")
    with pytest.raises(StoreError, match=r"file/c\.db"):
        store.put(1, {1: state_of(1)})
