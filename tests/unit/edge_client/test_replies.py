import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.replies import (
    MAX_RUNS,
    FileReplyStore,
    MemoryReplyStore,
    decode_reply_bytes,
    encode_reply_bytes,
)
from fedge.messages import EncodedUpdate, RoundKey

KEY = RoundKey("run", 1, "parent", "hyper")
UPDATE = EncodedUpdate(1, "parent", "layout", "raw", b"\x00\n\xff", 64.0, 1.5)


@given(st.binary(max_size=200), st.one_of(st.none(), st.floats(0, 100)), st.text(max_size=20))
def test_any_reply_comes_back_byte_for_byte(
    payload: bytes, epsilon: float | None, run_name: str
) -> None:
    key = RoundKey(run_name, 3, "p", "h")
    update = EncodedUpdate(3, "p", "l", "raw", payload, 8.0, epsilon)
    assert decode_reply_bytes(encode_reply_bytes(key, update), key) == update


def test_a_reply_is_found_again_after_a_restart(tmp_path: Path) -> None:
    FileReplyStore(tmp_path).put(KEY, UPDATE)
    assert FileReplyStore(tmp_path).get(KEY) == UPDATE


@pytest.mark.parametrize(
    "other",
    [
        RoundKey("run", 2, "parent", "hyper"),
        RoundKey("run", 1, "another", "hyper"),
        RoundKey("run", 1, "parent", "another"),
        RoundKey("another", 1, "parent", "hyper"),
    ],
)
def test_a_reply_answers_its_own_round_only(tmp_path: Path, other: RoundKey) -> None:
    store = FileReplyStore(tmp_path)
    store.put(KEY, UPDATE)
    assert store.get(other) is None


def test_runs_do_not_push_each_other_out(tmp_path: Path) -> None:
    store = FileReplyStore(tmp_path)
    other = RoundKey("another", 1, "parent", "hyper")
    store.put(KEY, UPDATE)
    store.put(other, UPDATE)
    assert store.get(KEY) == store.get(other) == UPDATE


def test_the_oldest_runs_are_forgotten(tmp_path: Path) -> None:
    store = FileReplyStore(tmp_path)
    for index in range(MAX_RUNS + 3):
        store.put(RoundKey(f"run-{index}", 1, "p", "h"), UPDATE)
        newest = max(tmp_path.glob("*.reply"), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (index, index))
    assert len(list(tmp_path.glob("*.reply"))) == MAX_RUNS
    assert store.get(RoundKey("run-0", 1, "p", "h")) is None
    assert store.get(RoundKey(f"run-{MAX_RUNS + 2}", 1, "p", "h")) == UPDATE


def test_every_flipped_byte_makes_a_stored_reply_unused(tmp_path: Path) -> None:
    store = FileReplyStore(tmp_path)
    store.put(KEY, UPDATE)
    [path] = tmp_path.glob("*.reply")
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert store.get(KEY) is None


def test_memory_store_keeps_the_last_reply_and_tells_its_keeper() -> None:
    kept: list[bytes] = []
    store = MemoryReplyStore(save=kept.append)
    assert store.get(KEY) is None
    store.put(KEY, UPDATE)
    assert MemoryReplyStore(kept[-1]).get(KEY) == UPDATE
