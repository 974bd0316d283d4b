"""Tests of the tuner train pseudo-clients one by one: measuring backends takes longer than they."""

from functools import partial

import pytest

from fedge.training.cohort_contracts import CohortSettings


@pytest.fixture(autouse=True)
def _one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    sequential = partial(CohortSettings, backend="sequential")
    monkeypatch.setattr("server.tuner.federation.CohortSettings", sequential)
