from __future__ import annotations

import inspect

import pytest

from fedge import errors
from fedge.errors import (
    BudgetExhausted,
    ConfigError,
    DeadlineExceeded,
    FedgeError,
    PrivacyError,
    ProtocolMismatch,
    TransportError,
    UpdateRejected,
)

ALL = [
    item
    for _, item in inspect.getmembers(errors, inspect.isclass)
    if item.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_a_fedge_error_and_stands_in_the_tree_of_the_docstring(
    error: type[Exception],
) -> None:
    assert issubclass(error, FedgeError)
    assert error.__name__ in (errors.__doc__ or "")


def test_the_branches_can_be_caught_together() -> None:
    assert issubclass(BudgetExhausted, PrivacyError)
    assert issubclass(DeadlineExceeded, TransportError)
    assert issubclass(ProtocolMismatch, TransportError)


def test_a_config_error_begins_with_its_key() -> None:
    assert str(ConfigError("must be 1", key="a.b")) == "a.b: must be 1"
    assert str(ConfigError("no file")) == "no file"
    assert ConfigError("no file").key is None


def test_a_refusal_says_where_and_what_and_is_located_later() -> None:
    error = UpdateRejected("shape", tensor="bias", expected=(3,), got=(4,))
    assert str(error) == "update rejected (shape) from tensor bias: expected (3,), got (4,)"
    located = error.located(client=0, round=0)
    assert str(located) == (
        "update rejected (shape) from client 0, round 0, tensor bias: expected (3,), got (4,)"
    )
    assert (located.reason, located.tensor, located.client, located.round) == (
        "shape",
        "bias",
        0,
        0,
    )
    assert error.client is None
    assert str(UpdateRejected("late")) == "update rejected (late)"


def test_an_exhausted_budget_says_what_was_spent_and_what_to_do() -> None:
    error = BudgetExhausted(spent=7.5, needed=8.25, budget=8.0)
    assert (error.spent, error.needed, error.budget) == (7.5, 8.25, 8.0)
    for part in ("7.500", "8.250", "8.000", "privacy.epsilon"):
        assert part in str(error)
