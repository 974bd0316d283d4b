import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.ledger import TRAIN, Account, Ledger, MemoryLedger
from edge_client.ledger_db import SqliteLedger
from fedge.errors import PrivacyError
from fedge.messages import RoundKey
from fedge.privacy.accounting import Spend

KEY = RoundKey("run", 1, "parent", "hyper")
SPEND = Spend(1.5, 0.25, 4)


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return MemoryLedger() if request.param == "memory" else SqliteLedger(tmp_path / "ledger.db")


def test_a_reservation_counts_as_spent_before_it_is_settled(ledger: Ledger) -> None:
    number = ledger.reserve(KEY, SPEND, partition=TRAIN, epsilon=1.0, delta=1e-5)
    assert ledger.spends(TRAIN) == (SPEND,)
    ledger.settle(number)
    assert ledger.spends(TRAIN) == (SPEND,)


def test_the_same_round_reserved_again_after_a_crash_is_counted_twice(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.reserve(KEY, SPEND, partition=TRAIN, epsilon=1.0, delta=1e-5)
    assert ledger.spends(TRAIN) == (SPEND, SPEND)


def test_partitions_are_accounted_apart_and_the_largest_is_what_the_device_spent(
    ledger: Ledger,
) -> None:
    ledger.reserve(KEY, SPEND, partition=TRAIN, epsilon=2.0, delta=1e-5)
    ledger.reserve(KEY, Spend(3.0, 1.0, 1), partition="holdout", epsilon=0.5, delta=1e-5)
    assert ledger.spends(TRAIN) == (SPEND,)
    assert ledger.account() == Account(2.0, 1e-5)


def test_nothing_reserved_is_no_account(ledger: Ledger) -> None:
    assert ledger.account() is None
    assert ledger.noise_multiplier("run") is None


def test_the_noise_multiplier_of_a_run_is_kept(ledger: Ledger) -> None:
    ledger.fix_noise_multiplier("run", 1.25)
    assert ledger.noise_multiplier("run") == 1.25
    assert ledger.noise_multiplier("another") is None


def test_sqlite_ledger_is_the_same_after_reopening(tmp_path: Path) -> None:
    first = SqliteLedger(tmp_path / "ledger.db")
    first.reserve(KEY, SPEND, partition=TRAIN, epsilon=1.0, delta=1e-5)
    first.fix_noise_multiplier("run", 1.5)
    first.close()
    second = SqliteLedger(tmp_path / "ledger.db")
    assert second.spends(TRAIN) == (SPEND,)
    assert second.account() == Account(1.0, 1e-5)
    assert second.noise_multiplier("run") == 1.5


def test_a_reservation_survives_a_kill_right_after_it(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from edge_client.ledger_db import SqliteLedger\n"
        "from fedge.messages import RoundKey\n"
        "from fedge.privacy.accounting import Spend\n"
        "ledger = SqliteLedger(Path(sys.argv[1]))\n"
        "ledger.reserve(RoundKey('run', 1, 'p', 'h'), Spend(1.5, 0.25, 4),\n"
        "               partition='train', epsilon=1.0, delta=1e-5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "ledger.db"
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -9
    assert SqliteLedger(path).spends(TRAIN) == (SPEND,)


def test_sqlite_ledger_syncs_every_commit(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    assert ledger._execute("PRAGMA synchronous") == [(2,)]
    assert ledger._execute("PRAGMA journal_mode") == [("wal",)]


def test_a_damaged_ledger_stops_training_and_says_not_to_delete_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database, and long enough to be read as one" * 40)
    with pytest.raises(PrivacyError, match=r"ledger\.db.*Do not delete"):
        SqliteLedger(path)


def test_a_ledger_that_cannot_be_written_reserves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("DROP TABLE entries")
    with pytest.raises(PrivacyError, match="does not train"):
        ledger.reserve(KEY, SPEND, partition=TRAIN, epsilon=1.0, delta=1e-5)


def test_memory_ledger_tells_its_keeper_about_every_change() -> None:
    kept: list[str] = []
    ledger = MemoryLedger(save=kept.append)
    ledger.settle(ledger.reserve(KEY, SPEND, partition=TRAIN, epsilon=1.0, delta=1e-5))
    ledger.fix_noise_multiplier("run", 2.0)
    assert len(kept) == 3
    assert MemoryLedger.from_json(kept[-1]).entries == ledger.entries


def test_a_memory_ledger_that_cannot_be_read_is_not_replaced_by_an_empty_one() -> None:
    with pytest.raises(PrivacyError, match="cannot be read"):
        MemoryLedger.from_json('{"entries": [{}]}')


@given(
    st.lists(
        st.tuples(st.floats(0.1, 100), st.floats(1e-6, 1), st.integers(1, 1000), st.floats(0, 50)),
        max_size=5,
    )
)
def test_memory_ledger_survives_json_exactly(rows: list[tuple[float, float, int, float]]) -> None:
    ledger = MemoryLedger()
    for noise, rate, steps, epsilon in rows:
        spend = Spend(noise, rate, steps)
        ledger.reserve(KEY, spend, partition=TRAIN, epsilon=epsilon, delta=1e-5)
    again = MemoryLedger.from_json(ledger.to_json())
    assert again.entries == ledger.entries
    assert again.account() == ledger.account()
