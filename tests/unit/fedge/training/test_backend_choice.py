"""How a cohort's backend is chosen, kept and said."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fedge.errors import TaskError
from fedge.params import Vector
from fedge.settings import Hyperparameters
from fedge.training import backend_choice, cohort
from fedge.training.backend_choice import choice_key, one_at_a_time, read_choice
from fedge.training.cohort import CohortTrainer
from fedge.training.cohort_contracts import Batches, CohortSettings, Outcome
from fedge.training.local import LocalTrainer
from fedge.training.sequential import SequentialBackend
from tests.unit.fedge.training.cohorts import Recurrent, Toy, alone, assert_equal, plan
from tests.unit.fedge.training.cohorts import cohort as make_cohort

HYPER = Hyperparameters(learning_rate=0.1, local_epochs=1, batch_size=4)
SIZES = (8, 8, 8)


class Clock:
    """Time that passes only where somebody lets it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    process_time = perf_counter


class Timed:
    """A backend that takes so long a client and otherwise trains one by one."""

    def __init__(self, name: str, clock: Clock, seconds: float, reason: str = "") -> None:
        self.name = name
        self._clock, self._seconds, self._reason = clock, seconds, reason
        self._inner = SequentialBackend(Toy())
        self.num_calls = 0

    def reason_against(self, model: nn.Module, hyper: Hyperparameters, private: bool) -> str:
        return self._reason

    def train(
        self, parent: Vector, members: Sequence[Batches], hyper: Hyperparameters
    ) -> list[Outcome]:
        self.num_calls += 1
        if self._seconds < 0:
            raise RuntimeError("no rule for aten::spin\nmore lines")
        self._clock.now_s += self._seconds * len(members)
        return self._inner.train(parent, members[:1], hyper) * len(members)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backend_choice, "time", clock)
    return clock


def trainer_with(
    backends: list[Timed], monkeypatch: pytest.MonkeyPatch, cache: Path | None = None
) -> CohortTrainer:
    """Return a trainer that knows these backends and the sequential one only."""
    by_name = {backend.name: backend for backend in backends}
    makers = {name: (lambda *_, name=name: by_name[name]) for name in by_name}
    monkeypatch.setattr(cohort, "BACKENDS", makers)
    return CohortTrainer(Toy(), CohortSettings(cache=cache))


def train(trainer: CohortTrainer) -> list[Outcome]:
    parent = LocalTrainer(Toy()).initial_weights(0)
    return trainer.train(parent, make_cohort(SIZES), HYPER)


def test_the_fastest_that_can_is_chosen_and_the_log_says_why(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backends = [
        Timed("quick", clock, 0.001),
        Timed("slow", clock, 0.02),
        Timed("broken", clock, -1),
        Timed("unable", clock, 1e-6, reason="it has no wheels"),
    ]
    trainer = trainer_with(backends, monkeypatch)
    with caplog.at_level(logging.INFO):
        train(trainer)
    assert trainer.backend_name(HYPER, private=False) == "quick"
    assert trainer.backend_name(HYPER, private=True) == ""
    assert caplog.messages == [
        "cohort training: quick (1,000 clients/s; slow 50; "
        "not broken: RuntimeError: no rule for aten::spin; not unable: it has no wheels)"
    ]
    # A slow backend is not given as many clients as a quick one.
    assert clock.now_s < 1


def test_it_is_measured_once_for_each_kind_of_training(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = Timed("only", clock, 0.2)
    trainer = trainer_with([only], monkeypatch)
    train(trainer)
    first = only.num_calls
    train(trainer)
    assert only.num_calls == first + 1


def test_a_measurement_is_kept_on_disk_for_other_processes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "not" / "yet"
    train(trainer_with([Timed("a", clock, 0.1), Timed("b", clock, 0.2)], monkeypatch, cache))
    # Now b would win, but what was found stands.
    slow, fast = Timed("a", clock, 0.2), Timed("b", clock, 0.1)
    trainer = trainer_with([slow, fast], monkeypatch, cache)
    train(trainer)
    assert trainer.backend_name(HYPER, private=False) == "a"
    assert (slow.num_calls, fast.num_calls) == (1, 0)


@pytest.mark.parametrize("content", ["", "[1]", '{"name": "gone"}', '{"title": "a"}'])
def test_a_cache_that_cannot_be_used_is_measured_anew(
    content: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = trainer_with([Timed("a", clock, 0.1)], monkeypatch, tmp_path)
    key = choice_key(trainer.layout.digest, HYPER, False, CohortSettings(cache=tmp_path))
    path = tmp_path / f"{key}.json"
    path.write_text(content)
    train(trainer)
    assert json.loads(path.read_text())["name"] == "a"
    kept = read_choice(tmp_path, key)
    assert kept is not None
    assert kept.name == "a"
    assert kept.rates == pytest.approx({"a": 10.0})


def test_while_one_measures_another_waits_for_what_it_finds(tmp_path: Path) -> None:
    entered, order = threading.Event(), []

    def second() -> None:
        entered.set()
        with one_at_a_time(tmp_path, "key"):
            order.append("second")

    with one_at_a_time(tmp_path, "key"):
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_key_tells_apart_what_trains_differently() -> None:
    settings = CohortSettings()
    keys = {
        choice_key(digest, hyper, private, chosen)
        for digest in ("a", "b")
        for hyper in (HYPER, replace(HYPER, batch_size=9), replace(HYPER, momentum=0.5))
        for private in (False, True)
        for chosen in (settings, replace(settings, precision="bfloat16"))
    }
    assert len(keys) == 24
    slower = replace(HYPER, learning_rate=0.01)
    assert choice_key("a", HYPER, False, settings) == choice_key("a", slower, False, settings)


def test_dropout_is_left_to_backends_that_draw_client_by_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 5))

    task = Toy(model=model)
    local, trainer = LocalTrainer(task), CohortTrainer(task)
    parent = local.initial_weights(0)
    before = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        found = trainer.train(parent, make_cohort(SIZES), HYPER)
    assert_equal(found, alone(local, parent, make_cohort(SIZES), HYPER))
    assert "not stacked: dropout is drawn for one client after another" in caplog.text
    assert torch.equal(before, torch.get_rng_state())


def test_a_gru_falls_back_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    task = Toy(model=Recurrent)
    parent = LocalTrainer(task).initial_weights(0)
    with caplog.at_level(logging.INFO):
        CohortTrainer(task).train(parent, make_cohort(SIZES), HYPER)
    assert "cohort training: sequential (" in caplog.text
    assert "not stacked: RuntimeError: Batching rule not implemented for aten::gru" in caplog.text


class Tied(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.again = self.first
        self.last = nn.Linear(12, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.again(torch.relu(self.first(inputs))))
        return outputs


class Twice(nn.Module):
    """A layer called twice under one name."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.shared(torch.relu(self.shared(inputs))))
        return outputs


def test_a_layer_called_twice_is_trained_without_dp_and_refused_with_it() -> None:
    task = Toy(model=Twice)
    local = LocalTrainer(task)
    parent = local.initial_weights(0)
    stacked = CohortTrainer(task, CohortSettings(backend="stacked"))
    found = stacked.train(parent, make_cohort(SIZES), HYPER)
    assert_equal(found, alone(local, parent, make_cohort(SIZES), HYPER))
    plans = [plan(8)] * 3
    found = stacked.train(parent, make_cohort(SIZES, plans), HYPER)
    assert_equal(found, alone(local, parent, make_cohort(SIZES, plans), HYPER))
    assert "Parameter tying" in str(found[0])


class Buffered(nn.Module):
    """A model that changes its buffer while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 5)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.get_buffer("count").add_(1)
        outputs: torch.Tensor = self.last(inputs)
        return outputs


@pytest.mark.parametrize(
    ("model", "reason"), [(Tied, "shares a parameter"), (Buffered, "changes its buffers")]
)
def test_a_model_whose_clients_cannot_be_told_apart_is_not_stacked(
    model: type[nn.Module], reason: str
) -> None:
    task = Toy(model=model)
    local = LocalTrainer(task)
    parent = local.initial_weights(0)
    stacked = CohortTrainer(task, CohortSettings(backend="stacked"))
    with pytest.raises(TaskError, match=reason):
        stacked.train(parent, make_cohort(SIZES), HYPER)
    found = CohortTrainer(task).train(parent, make_cohort(SIZES), HYPER)
    assert_equal(found, alone(local, parent, make_cohort(SIZES), HYPER))


def test_members_that_nobody_can_train_decide_nothing() -> None:
    task, members = Toy(), make_cohort(SIZES)
    for member in members:
        member.examples.inputs[:] = 3e38
    trainer = CohortTrainer(task)
    parent = LocalTrainer(task).initial_weights(0)
    found = trainer.train(parent, members, HYPER)
    assert all(isinstance(outcome, TaskError) for outcome in found)
    assert trainer.backend_name(HYPER, private=False) == ""


def test_training_with_dp_is_chosen_for_by_itself() -> None:
    trainer = CohortTrainer(Toy())
    parent = LocalTrainer(Toy()).initial_weights(0)
    trainer.train(parent, make_cohort(SIZES, [plan(8)] * 3), HYPER)
    assert trainer.backend_name(HYPER, private=True)
    assert not trainer.backend_name(HYPER, private=False)


def test_of_long_training_the_first_steps_are_measured_and_rates_are_of_the_whole(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Counting(Timed):
        def train(
            self, parent: Vector, members: Sequence[Batches], hyper: Hyperparameters
        ) -> list[Outcome]:
            seen.extend(len(member.steps) for member in members)
            return super().train(parent, members, hyper)

    trainer = trainer_with([Counting("only", clock, 0.01)], monkeypatch)
    parent = LocalTrainer(Toy()).initial_weights(0)
    hyper = replace(HYPER, local_epochs=40)  # of two steps
    trainer.train(parent, make_cohort(SIZES), hyper)
    assert seen[-len(SIZES) :] == [80] * len(SIZES)
    assert set(seen[: -len(SIZES)]) == {20}
