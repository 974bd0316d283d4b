import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.mqtt.outbox import ROW_OVERHEAD_BYTES, Answer, Outbox
from edge_client.mqtt.settings import OutboxConfig
from fedge.errors import ConfigError, StoreError

BODY = b'{"output":[1]}'
ROW_BYTES = ROW_OVERHEAD_BYTES + len(BODY)


def open_outbox(path: Path, max_bytes: int = 4096, when_full: str = "oldest-first") -> Outbox:
    return Outbox(path, OutboxConfig(max_bytes=max_bytes, when_full=when_full), clock=lambda: 5.0)


def put(outbox: Outbox, *sequences: int, source: str = "s", body: bytes | None = BODY) -> int:
    return outbox.put_many([Answer(source, sequence, body) for sequence in sequences])


def numbers(outbox: Outbox) -> list[int]:
    return [row.sequence for row in outbox.head(0, 10_000)]


def test_numbers_grow_across_restarts_and_deletions(tmp_path: Path) -> None:
    with open_outbox(tmp_path / "o.db") as outbox:
        assert put(outbox, 1, 2, 3) == 3
        first = numbers(outbox)
        assert first == [5001, 5002, 5003]
        assert outbox.delete(first) == 3
        assert numbers(outbox) == []
    with open_outbox(tmp_path / "o.db") as outbox:
        put(outbox, 4)
        assert numbers(outbox) == [5004]
    assert stat.S_IMODE((tmp_path / "o.db").stat().st_mode) == 0o600


def test_a_sample_is_answered_once_even_after_its_prediction_is_gone(tmp_path: Path) -> None:
    with open_outbox(tmp_path / "o.db") as outbox:
        assert put(outbox, 1, 1, 2) == 2
        outbox.delete(numbers(outbox))
    with open_outbox(tmp_path / "o.db") as outbox:
        assert put(outbox, 2, 1) == 0
        assert put(outbox, 1, source="other") == 1
        found = outbox.snapshot()
    assert found["duplicates_total"] == 3
    assert found["outbox_waiting"] == 1


def test_gaps_in_what_came_are_counted_until_they_are_filled(tmp_path: Path) -> None:
    with open_outbox(tmp_path / "o.db") as outbox:
        put(outbox, 10, 14, 12)
        assert outbox.snapshot()["sequence_gap"] == 2
        put(outbox, 11)
        assert outbox.snapshot()["sequence_gap"] == 1


def test_a_sample_without_prediction_is_remembered_and_nothing_waits(tmp_path: Path) -> None:
    with open_outbox(tmp_path / "o.db") as outbox:
        assert put(outbox, 1, body=None) == 1
        assert put(outbox, 1) == 0
        assert numbers(outbox) == []


def test_the_oldest_make_room_and_are_counted(tmp_path: Path) -> None:
    fits = 4096 // ROW_BYTES
    with open_outbox(tmp_path / "o.db") as outbox:
        put(outbox, *range(fits + 5))
        found = outbox.snapshot()
        assert numbers(outbox) == list(range(5001 + 5, 5001 + 5 + fits))
    assert found["outbox_dropped_total"] == 5
    assert found["outbox_refused_total"] == 0
    assert found["outbox_bytes"] == fits * ROW_BYTES <= 4096


def test_new_ones_are_refused_and_counted(tmp_path: Path) -> None:
    fits = 4096 // ROW_BYTES
    with open_outbox(tmp_path / "o.db", when_full="refuse") as outbox:
        put(outbox, *range(fits + 5))
        assert numbers(outbox) == list(range(5001, 5001 + fits))
        assert outbox.snapshot()["outbox_refused_total"] == 5
        outbox.delete([5001])
        put(outbox, 100)
        assert numbers(outbox)[-1] == 5001 + fits


def test_one_that_is_larger_than_the_outbox_is_refused(tmp_path: Path) -> None:
    with open_outbox(tmp_path / "o.db") as outbox:
        put(outbox, 1)
        put(outbox, 2, body=b"{" + b"x" * 5000)
        assert numbers(outbox) == [5001]
        assert outbox.snapshot()["outbox_refused_total"] == 1


def test_a_smaller_bound_is_kept_after_a_restart(tmp_path: Path) -> None:
    with open_outbox(tmp_path / "o.db", max_bytes=8192) as outbox:
        put(outbox, *range(8192 // ROW_BYTES))
    with open_outbox(tmp_path / "o.db") as outbox:
        assert outbox.snapshot()["outbox_bytes"] <= 4096


def test_predictions_are_read_one_by_one_too(tmp_path: Path) -> None:
    with open_outbox(tmp_path / "o.db") as outbox:
        put(outbox, 1)
        row = outbox.read(5001)
        assert row is not None
        assert row.body == BODY
        assert outbox.read(5002) is None


def test_an_unknown_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="oldest-first, refuse"):
        open_outbox(tmp_path / "o.db", when_full="newest")


def test_a_damaged_file_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "o.db").write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(StoreError, match=r"o\.db"):
        open_outbox(tmp_path / "o.db")


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "ack"]), st.integers(0, 40), st.integers(0, 800)),
        max_size=40,
    ),
    when_full=st.sampled_from(["oldest-first", "refuse"]),
)
def test_bytes_are_bounded_and_every_prediction_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int, int]],
    when_full: str,
) -> None:
    path = tmp_path_factory.mktemp("outbox") / "o.db"
    acknowledged = 0
    with open_outbox(path, when_full=when_full) as outbox:
        known: set[int] = set()
        for what, sequence, size in steps:
            if what == "put":
                assert put(outbox, sequence, body=b"{" * (size + 1)) == (sequence not in known)
                known.add(sequence)
            else:
                acknowledged += outbox.delete(numbers(outbox)[: sequence % 4])
            found = outbox.snapshot()
            rows = outbox.head(0, 1000)
            assert found["outbox_bytes"] == sum(ROW_OVERHEAD_BYTES + len(r.body) for r in rows)
            assert found["outbox_bytes"] <= 4096
            assert found["outbox_waiting"] == len(rows)
            gone = acknowledged + found["outbox_dropped_total"]
            assert found["outbox_kept_total"] == len(rows) + gone
            assert found["outbox_kept_total"] + found["outbox_refused_total"] == len(known)
