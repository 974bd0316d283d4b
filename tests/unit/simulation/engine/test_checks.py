"""Backends and devices that do not exist are refused by their dotted keys."""

import pytest
import torch

from fedge.errors import ConfigError
from simulation.engine.checks import check_engine
from simulation.settings import EngineConfig


@pytest.mark.parametrize("backend", ["auto", "stacked", "fused", "sequential"])
def test_what_exists_is_let_through(backend: str) -> None:
    check_engine(EngineConfig(backend=backend))


def test_an_unknown_backend_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"engine\.backend: .*auto, .*stacked.*'nope'"):
        check_engine(EngineConfig(backend="nope"))


def test_what_is_no_device_is_named() -> None:
    with pytest.raises(ConfigError, match=r"engine\.device: .*'teapot'"):
        check_engine(EngineConfig(device="teapot"))


def test_a_device_that_is_not_there_is_refused_unless_a_cluster_may_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"engine\.device: .*no CUDA"):
        check_engine(EngineConfig(device="cuda:0"))
    check_engine(EngineConfig(device="cuda", ray="auto"))
