"""What is refused before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from fedge.errors import ConfigError, ModelError, TaskError
from fedge.settings import Hyperparameters
from fedge.task import EdgeFiles
from fedge.tasks.digits import Digits
from server import checks
from server.checks import check_names, load_checked_task
from server.settings import AggregationConfig, RefineConfig, ServerConfig


class Unshipped(Digits):
    """The digits task as if it had no edge files."""

    def edge_files(self) -> EdgeFiles | None:
        return None


class WithBatchNorm(Digits):
    """The digits task with a model that cannot be trained privately."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10))


def test_the_embedded_task_passes() -> None:
    assert load_checked_task(ServerConfig()).name == "digits"


def test_a_task_that_cannot_reach_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_converter", lambda: None)
    monkeypatch.setattr(checks, "load_task", lambda *_, **__: Unshipped())
    with pytest.raises(ModelError, match="ships no TFLite template"):
        load_checked_task(ServerConfig())


def test_a_model_with_batch_norm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "load_task", lambda *_, **__: WithBatchNorm())
    with pytest.raises(TaskError, match=r"'0' is BatchNorm.*use GroupNorm"):
        load_checked_task(ServerConfig())


def test_personal_layers_that_the_model_does_not_have_are_refused() -> None:
    config = ServerConfig(train=Hyperparameters(personal_layers=("head.*",)))
    text = r"^train\.personal_layers: 'head\.\*' matches no .*bias"
    with pytest.raises(ConfigError, match=text):
        load_checked_task(config)


def test_a_name_nobody_knows_is_refused_by_its_whole_key() -> None:
    config = ServerConfig(aggregation=AggregationConfig(aggregator="mode"))
    with pytest.raises(ConfigError, match=r"^server\.aggregation\.aggregator: .*, got 'mode'"):
        check_names(config, "server.")


def test_a_token_that_is_not_there_is_refused_only_where_it_is_used(tmp_path: Path) -> None:
    refine = RefineConfig(trainer="127.0.0.1:9094", token_file=tmp_path / "token")
    with pytest.raises(ConfigError, match=r"refine\.token_file: cannot read"):
        check_names(ServerConfig(refine=refine))
    check_names(ServerConfig(refine=replace(refine, trainer="")))
