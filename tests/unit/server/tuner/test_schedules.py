"""When later searches are due."""

import math
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedge.config import build
from server.tuner.schedules import SCHEDULES, reason_against
from server.tuner.settings import TunerConfig

LOSSES = st.lists(st.floats(0, 10), min_size=1, max_size=12)


@given(losses=LOSSES, every=st.integers(1, 4), name=st.sampled_from(list(SCHEDULES)))
def test_none_is_due_within_its_number_of_rounds(
    losses: list[float], every: int, name: str
) -> None:
    rounds = len(losses) - 1
    reason = SCHEDULES[name](losses, every)
    if rounds < every:
        assert reason
    elif name == "interval":
        assert not reason


@given(losses=LOSSES, every=st.integers(1, 4))
def test_a_loss_that_falls_is_no_stall_and_one_that_does_not_is(
    losses: list[float], every: int
) -> None:
    if len(losses) <= every:
        return
    lower = min(losses) - 1
    assert SCHEDULES["stall"]([*losses, lower], every)
    assert not SCHEDULES["stall"]([lower, *losses], every)


def test_a_loss_that_is_not_known_is_no_new_low() -> None:
    assert not SCHEDULES["stall"]([1.0, math.inf, math.inf], 2)
    assert not SCHEDULES["stall"]([math.inf, math.inf], 1)
    assert SCHEDULES["stall"]([math.inf, 1.0], 1)


def trial(*, searched: bool, kept: bool = False, loss: float | None = 1.0, **fields: Any) -> Any:
    attributes = {"searched": searched, "kept": kept, "loss_before": loss, "passes": 10}
    return SimpleNamespace(user_attrs=attributes, value=fields.get("value"))


def reason(past: list[Any], loss: float | None = 2.0, **fields: Any) -> str:
    return reason_against(build(TunerConfig, {"every_rounds": 1, **fields}), past, loss)


def test_the_first_search_is_always_due() -> None:
    assert reason([]) == ""
    assert reason([trial(searched=False)]) == ""


def test_what_was_before_the_last_search_does_not_count() -> None:
    low, search = trial(searched=True, loss=0.1), trial(searched=True, loss=3.0)
    assert reason([low, search], 2.0) == "real rounds still lower the gate set's loss"
    assert reason([low, search], 4.0) == ""


def test_budget_and_patience_end_it() -> None:
    kept = [trial(searched=True, kept=True), trial(searched=True, kept=True)]
    assert reason(kept, budget=20) == "the budget is spent"
    assert reason(kept, budget=21) == ""
    assert reason(kept, patience=2) == "2 searches changed nothing"
    assert reason(kept, patience=0) == reason(kept, patience=3) == ""
    worse = trial(searched=True, kept=True, value=-0.1)
    assert reason([*kept, worse], patience=2) == ""
