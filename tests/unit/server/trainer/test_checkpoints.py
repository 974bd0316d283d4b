"""A refinement that was cut short goes on where it was, and ends as if it had not been."""

import logging
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedge.errors import RefineError, TransportError
from fedge.training.local import LocalTrainer
from server.trainer import checkpoints
from server.trainer.alone import refining_alone
from server.trainer.checkpoints import COMPLETE, REFINEMENTS, DcpCheckpoints
from server.trainer.loop import Control
from server.trainer.refining import Refining
from server.trainer.spec import CutShort, Refinement, RefineSpec
from tests.tiny_task import TinyTask

TASK = TinyTask(dropout=0.3)
START = LocalTrainer(TASK).initial_weights(0)
SPEC = RefineSpec(learning_rate=0.1, steps=30, objective="anchored", optimizer="adamw")


def _refining(folder: Path, interval_s: float = 1e-9) -> Refining:
    refining = refining_alone(TASK)
    refining.checkpoints = DcpCheckpoints(folder, interval_s)
    return refining


def _cut(folder: Path, key: str, *, at: int = 17, spec: RefineSpec = SPEC) -> None:
    """Refine until a step, as far as checkpoints go."""
    refining, calls = _refining(folder), iter(range(100))

    def should_stop() -> bool:
        refining.checkpoints.close()  # each step's is written, however slow the disk
        return next(calls) == at

    with pytest.raises(RefineError, match=f"cancelled after {at} of"):
        refining.run(START, spec, Control(should_stop=should_stop), key=key)


def _go_on(folder: Path, key: str, spec: RefineSpec = SPEC) -> tuple[int, Refinement]:
    """Return the first step that is taken, and the refinement."""
    steps: list[int] = []
    control = Control(progress=lambda step, *_: steps.append(step))
    refinement = _refining(folder, 1e9).run(START, spec, control, key=key)
    return steps[0], refinement


def _kept(folder: Path) -> list[Path]:
    return sorted((folder / REFINEMENTS).glob("*/step-*"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_going_on_ends_where_an_uncut_refinement_does(tmp_path: Path, optimizer: str) -> None:
    spec = RefineSpec(learning_rate=0.1, steps=30, objective="anchored", optimizer=optimizer)
    uncut = refining_alone(TASK).run(START, spec)
    _cut(tmp_path, "order", spec=spec)
    first, refinement = _go_on(tmp_path, "order", spec)
    assert 1 < first <= 18
    np.testing.assert_array_equal(refinement.weights, uncut.weights)
    assert (refinement.num_steps, refinement.loss_first, refinement.loss_last) == (
        uncut.num_steps,
        uncut.loss_first,
        uncut.loss_last,
    )


def test_a_checkpoint_of_another_setting_is_of_no_use(tmp_path: Path) -> None:
    _cut(tmp_path, "order")
    refining = _refining(tmp_path, 1e9)
    refining.setting = "precision bfloat16"
    steps: list[int] = []
    control = Control(progress=lambda step, *_: steps.append(step))
    refining.run(START, SPEC, control, key="order")
    assert steps[0] == 1


def test_another_refinement_begins_anew_and_takes_the_place(tmp_path: Path) -> None:
    _cut(tmp_path, "order")
    assert _go_on(tmp_path, "other")[0] == 1
    assert _go_on(tmp_path, "order")[0] == 1


def test_a_refinement_without_a_key_touches_nothing(tmp_path: Path) -> None:
    _cut(tmp_path, "order")
    assert _go_on(tmp_path, "")[0] == 1
    assert _go_on(tmp_path, "order")[0] > 1


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path: Path) -> None:
    _cut(tmp_path, "order")
    kept = _kept(tmp_path)
    (kept[-1] / COMPLETE).unlink()
    steps = [int(each.name.removeprefix("step-")) for each in kept]
    assert len(steps) >= 2
    assert _go_on(tmp_path, "order")[0] == steps[-2] + 1


def test_a_damaged_checkpoint_is_named_and_the_next_try_takes_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _cut(tmp_path, "order")
    *_, older, newest = _kept(tmp_path)
    for each in newest.glob("*.distcp"):
        each.write_bytes(each.read_bytes()[:50])
    with (
        caplog.at_level(logging.WARNING, "server.trainer.checkpoints"),
        pytest.raises(CutShort, match="a checkpoint is damaged"),
    ):
        _go_on(tmp_path, "order")
    assert f"checkpoint {newest} is damaged and was removed" in caplog.text
    first, refinement = _go_on(tmp_path, "order")
    assert first == int(older.name.removeprefix("step-")) + 1
    np.testing.assert_array_equal(refinement.weights, refining_alone(TASK).run(START, SPEC).weights)


def test_a_rank_that_is_lost_while_a_checkpoint_is_read_leaves_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall(*_: object, **__: object) -> None:
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer")

    _cut(tmp_path, "order")
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "load", fall)
        with pytest.raises(TransportError, match="another rank of the trainer was lost"):
            _go_on(tmp_path, "order")
    assert _go_on(tmp_path, "order")[0] > 1


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "photographs" / "step-00000001"
    other.mkdir(parents=True)
    _cut(tmp_path, "order")
    _cut(tmp_path, "another")
    assert other.is_dir()
    assert len(list((tmp_path / REFINEMENTS).iterdir())) == 1


def test_what_was_cut_short_while_it_was_written_is_removed(tmp_path: Path) -> None:
    _cut(tmp_path, "order", at=3)
    half = _kept(tmp_path)[0].with_name("step-00000000")
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(bytes(9))
    _refining(tmp_path).run(START, SPEC, key="order")
    assert not half.exists()


def test_old_checkpoints_are_removed(tmp_path: Path) -> None:
    _cut(tmp_path, "order")
    assert len(_kept(tmp_path)) <= 3  # two, and what is being written


def test_nothing_is_kept_before_the_interval_is_over(tmp_path: Path) -> None:
    _refining(tmp_path, 1e9).run(START, SPEC, key="order")
    assert _kept(tmp_path) == []


def test_a_disk_that_takes_nothing_costs_the_checkpoint_and_not_the_refinement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    refining = _refining(blocked)
    with caplog.at_level(logging.WARNING, "server.trainer.checkpoints"):
        refinement = refining.run(START, SPEC, key="order")
        refining.checkpoints.close()
    np.testing.assert_array_equal(refinement.weights, refining_alone(TASK).run(START, SPEC).weights)
    assert "a checkpoint could not be written" in caplog.text


def test_what_was_taken_before_the_cut_counts_for_the_budget_and_not_for_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        clock = SimpleNamespace(monotonic=count(0, 100).__next__)
        for module in ("loop", "refining"):
            patched.setattr(f"server.trainer.{module}.time", clock)
        _cut(tmp_path, "order", spec=replace(SPEC, deadline_s=1e9))
    refining, spec = _refining(tmp_path, 1e9), replace(SPEC, deadline_s=300.0)
    refinement = refining.run(START, spec, key="order")
    assert refinement.num_steps == 30
    assert refinement.seconds > 300
    spent = refining.run(START, replace(spec, budget_s=200.0), key="order")
    assert 0 < spent.num_steps < 30
