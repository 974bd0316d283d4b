import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from edge_client.replies import MAX_RUNS, FileReplyStore, MemoryReplyStore
from fedge.errors import StoreError
from fedge.messages import EncodedUpdate, RoundKey

KEY = RoundKey("run", 1, "parent", "hyper")
UPDATE = EncodedUpdate(1, "parent", "layout", "raw", b"\x00\n\xff", 64.0, 1.5)


def state_of(value: float) -> dict[str, object]:
    return {"residual": np.full(5, value, np.float32), "rounds": 3}


def residual(store: FileReplyStore | MemoryReplyStore, run_name: str = "run") -> list[float]:
    return [float(value) for value in store.state(run_name).get("residual", [])]


def test_reply_and_memory_are_found_again_after_a_restart(tmp_path: Path) -> None:
    FileReplyStore(tmp_path).put(KEY, UPDATE, state_of(0.5))
    again = FileReplyStore(tmp_path)
    assert again.get(KEY) == UPDATE
    assert residual(again) == [0.5] * 5
    assert again.state("run")["rounds"] == 3


def test_the_memory_is_that_of_the_last_reply_of_its_run(tmp_path: Path) -> None:
    for store in (FileReplyStore(tmp_path), MemoryReplyStore()):
        assert store.state("run") == {}
        store.put(KEY, UPDATE, state_of(1))
        store.put(RoundKey("run", 2, "parent", "hyper"), UPDATE, state_of(2))
        assert residual(store) == [2.0] * 5
        assert store.state("another") == {}


def test_what_a_reader_does_to_the_memory_stays_with_it(tmp_path: Path) -> None:
    for store in (FileReplyStore(tmp_path), MemoryReplyStore()):
        store.put(KEY, UPDATE, state_of(1))
        store.state("run")["residual"][:] = 9
        assert residual(store) == [1.0] * 5


def test_a_put_that_fails_leaves_the_old_reply_with_the_old_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileReplyStore(tmp_path)
    store.put(KEY, UPDATE, state_of(1))

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(StoreError, match="not sent"):
        store.put(RoundKey("run", 2, "parent", "hyper"), UPDATE, state_of(2))
    assert store.get(KEY) == UPDATE
    assert residual(store) == [1.0] * 5


@pytest.mark.parametrize(
    "other",
    [
        RoundKey("run", 2, "parent", "hyper"),
        RoundKey("run", 1, "another", "hyper"),
        RoundKey("run", 1, "parent", "another"),
        RoundKey("another", 1, "parent", "hyper"),
        RoundKey("run", 1, "parent", "hyper", "int8"),
    ],
)
def test_a_reply_answers_its_own_round_only(tmp_path: Path, other: RoundKey) -> None:
    store = FileReplyStore(tmp_path)
    store.put(KEY, UPDATE, {})
    assert store.get(other) is None


def test_runs_do_not_push_each_other_out(tmp_path: Path) -> None:
    store = FileReplyStore(tmp_path)
    other = RoundKey("another", 1, "parent", "hyper")
    store.put(KEY, UPDATE, {})
    store.put(other, UPDATE, {})
    assert store.get(KEY) == store.get(other) == UPDATE


def test_the_oldest_runs_are_forgotten(tmp_path: Path) -> None:
    store = FileReplyStore(tmp_path)
    for index in range(MAX_RUNS + 3):
        store.put(RoundKey(f"run-{index}", 1, "p", "h"), UPDATE, {})
        newest = max(tmp_path.glob("*.reply"), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (index, index))
    assert len(list(tmp_path.glob("*.reply"))) == MAX_RUNS
    assert store.get(RoundKey("run-0", 1, "p", "h")) is None
    assert store.get(RoundKey(f"run-{MAX_RUNS + 2}", 1, "p", "h")) == UPDATE


def test_every_flipped_byte_is_found_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FileReplyStore(tmp_path)
    store.put(KEY, UPDATE, state_of(1))
    [path] = tmp_path.glob("*.reply")
    whole = path.read_bytes()
    for position in range(len(whole)):
        caplog.clear()
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        update, state = store.get(KEY), store.state("run")
        assert update is None or state == {}
        assert update in (None, UPDATE)
        assert state == {} or state["residual"].tolist() == [1.0] * 5
        assert path.name in caplog.text


def test_a_damaged_memory_begins_anew_and_the_reply_is_still_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FileReplyStore(tmp_path)
    store.put(KEY, UPDATE, state_of(1))
    [path] = tmp_path.glob("*.reply")
    path.write_bytes(path.read_bytes()[:-3])
    assert store.get(KEY) == UPDATE
    assert store.state("run") == {}
    assert "begins anew" in caplog.text


def test_what_an_older_release_stored_is_not_used(tmp_path: Path) -> None:
    store = FileReplyStore(tmp_path)
    store.put(KEY, UPDATE, {})
    [path] = tmp_path.glob("*.reply")
    line = b'{"key": "run/1/parent/hyper", "update": {}}'
    digest = hashlib.sha256(line).hexdigest().encode()
    path.write_bytes(digest + b"\n" + line + b"\n")
    assert store.get(KEY) is None
    assert store.state("run") == {}


def test_memory_store_keeps_the_last_reply_and_tells_its_keeper() -> None:
    kept: list[bytes] = []
    store = MemoryReplyStore(save=kept.append)
    assert store.get(KEY) is None
    store.put(KEY, UPDATE, state_of(2))
    again = MemoryReplyStore(kept[-1])
    assert again.get(KEY) == UPDATE
    assert residual(again) == [2.0] * 5


def test_a_damaged_memory_store_begins_anew_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryReplyStore(b"neither hash nor header")
    assert store.get(KEY) is None
    assert store.state("run") == {}
    assert "begins anew" in caplog.text
