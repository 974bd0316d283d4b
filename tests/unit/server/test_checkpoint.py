import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from fedge.errors import CheckpointError
from fedge.params import Layout, vector_digest
from server.checkpoint import Checkpoint, CheckpointStore, read_checkpoint

LAYOUT = Layout(("w", "b"), ((2, 3), (3,)))
ROOT = Path(__file__).parents[3]


def make(round: int, run_name: str = "run") -> Checkpoint:
    weights = np.random.default_rng(round).normal(size=LAYOUT.size).astype(np.float32)
    return Checkpoint(
        run_name=run_name,
        round=round,
        layout=LAYOUT,
        weights=weights,
        optimizer_state={"fedavgm": {"velocity": weights * 2, "steps": round}},
        memory={"median": {}},
        epsilon={7: 1.25, 2**63 + 5: 0.5},
        exhausted=frozenset({7}),
        seed=3,
        metrics={"round": round, "refused": {"norm": 1}},
    )


def assert_same(left: Checkpoint | None, right: Checkpoint) -> None:
    assert left is not None
    assert left.weights.tobytes() == right.weights.tobytes()
    assert left.layout == right.layout
    velocity = left.optimizer_state["fedavgm"]["velocity"]
    assert velocity.tobytes() == right.optimizer_state["fedavgm"]["velocity"].tobytes()
    for name in ("run_name", "round", "memory", "epsilon", "exhausted", "seed", "metrics"):
        assert getattr(left, name) == getattr(right, name)


def test_nothing_committed_is_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.latest() is None
    assert store.latest_round() is None


def test_what_is_committed_comes_back_whole(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    place = store.commit(make(4))
    assert place.name == "round-000004"
    assert_same(store.latest(), make(4))
    assert store.latest_round() == 4
    assert make(4).digest == vector_digest(make(4).weights)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for round in range(6):
        store.commit(make(round))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["round-000003", "round-000004", "round-000005"]


@pytest.mark.parametrize("file", ["manifest.json", "checkpoint.json", "weights.f32", "arrays.npz"])
def test_a_bit_flip_in_any_file_falls_back_with_a_warning(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    store.commit(make(1))
    path = store.commit(make(2)) / file
    content = path.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 25)):
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        path.write_bytes(bytes(flipped))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = store.latest()
        assert found is not None
        if found.round == 2:  # a changed blank in the manifest changes nothing
            assert file == "manifest.json"
            assert_same(found, make(2))
        else:
            assert_same(found, make(1))
            assert "round-000002 is damaged" in caplog.text


@pytest.mark.parametrize("file", ["manifest.json", "weights.f32"])
def test_a_missing_or_short_file_falls_back(tmp_path: Path, file: str) -> None:
    store = CheckpointStore(tmp_path)
    store.commit(make(1))
    path = store.commit(make(2)) / file
    path.write_bytes(path.read_bytes()[:-1])
    assert_same(store.latest(), make(1))
    path.unlink()
    assert_same(store.latest(), make(1))


def test_when_every_one_is_damaged_it_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (store.commit(make(1)) / "weights.f32").unlink()
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is whole"):
        store.latest()


def test_a_commit_after_falling_back_replaces_the_damaged_ones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for round in (1, 2, 3):
        place = store.commit(make(round))
        if round > 1:
            (place / "weights.f32").write_bytes(b"")
    assert_same(store.latest(), make(1))
    store.commit(make(2))
    assert_same(store.latest(), make(2))
    assert store.latest_round() == 2


def test_a_replaced_round_is_found_when_a_kill_came_between_the_renames(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    place = store.commit(make(2))
    place.rename(place.with_name(place.name + ".old"))
    assert_same(store.latest(), make(2))
    store.commit(make(2))
    assert [path.name for path in tmp_path.iterdir()] == ["round-000002"]


def test_a_full_disk_is_a_checkpoint_error_and_the_last_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.commit(make(1))

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(CheckpointError, match="No space left on device"):
            store.commit(make(2))
    assert_same(store.latest(), make(1))
    store.commit(make(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000001", "round-000002"]


WRITER = """
    import sys
    from pathlib import Path
    import numpy as np
    from fedge.params import Layout
    from server.checkpoint import Checkpoint, CheckpointStore

    layout = Layout(("w",), ((200_000,),))
    store = CheckpointStore(Path(sys.argv[1]))
    last = store.latest()
    round = 0 if last is None else last.round
    while True:
        round += 1
        weights = np.full(layout.size, round, np.float32)
        state = {"velocity": weights}
        store.commit(Checkpoint("run", round, layout, weights, state, metrics={"round": round}))
        print(round, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_instant_never_loses_the_last_committed_round(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    said = 0
    for _ in range(15):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path / "checkpoints")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            said = int(child.stdout.readline())  # it runs, and has committed at least once
            time.sleep(float(rng.uniform(0, 0.03)))  # the random instant
            child.send_signal(signal.SIGKILL)
            lines = child.stdout.read().splitlines()
            said = int(lines[-1]) if lines and lines[-1] else said
        latest = CheckpointStore(tmp_path / "checkpoints").latest()
        assert latest is not None
        assert latest.round in (said, said + 1)  # killed after the rename, before it could say so
        assert np.all(latest.weights == latest.round)
        assert np.all(latest.optimizer_state["velocity"] == latest.round)
        newest = tmp_path / "checkpoints" / f"round-{latest.round:06d}"
        assert read_checkpoint(newest).metrics == {"round": latest.round}
