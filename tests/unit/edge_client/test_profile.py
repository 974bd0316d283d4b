import sys
from pathlib import Path
from typing import Any

import pytest

from edge_client import profile
from edge_client.profile import (
    describe_without_torch,
    missing_for_training,
    named_files,
    training_problem,
)
from edge_client.settings import EdgeConfig, InferenceConfig, NodeConfig, RegistryClientConfig
from fedge.errors import ConfigError
from fedge.settings import TaskConfig


def device(**sections: Any) -> EdgeConfig:
    return EdgeConfig(registry=RegistryClientConfig(address=""), **sections)


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one that has no torch."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(profile, "missing_for_training", lambda: ("torch",))


def task_module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> EdgeConfig:
    (folder / "a_users_task.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "a_users_task", raising=False)
    return device(task=TaskConfig("a_users_task:Task"))


@pytest.mark.usefixtures("without_torch")
def test_a_device_without_torch_says_so_only_if_it_was_to_train() -> None:
    problem = training_problem(device())
    assert "cannot train: torch not installed" in problem
    assert "node.superlink" in problem
    assert training_problem(device(node=NodeConfig(superlink=""))) == ""


def test_a_package_that_cannot_be_imported_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    assert "flwr" in missing_for_training()


@pytest.mark.usefixtures("without_torch")
def test_the_files_of_a_task_are_found_without_torch() -> None:
    description = describe_without_torch(device())
    assert description is not None
    assert description.files is not None
    assert description.files.template.is_file()


@pytest.mark.usefixtures("without_torch")
def test_a_task_that_imports_torch_is_told_to_name_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = task_module(tmp_path, monkeypatch, "import torch\n")
    assert describe_without_torch(config) is None
    assert "inference.template and inference.plan" in caplog.text


@pytest.mark.usefixtures("without_torch")
def test_another_fault_of_a_task_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"task\.name"):
        describe_without_torch(task_module(tmp_path, monkeypatch, "import no_such_module\n"))


def test_files_named_in_the_configuration_need_no_task(tmp_path: Path) -> None:
    template, plan = tmp_path / "model.tflite", tmp_path / "plan.json"
    files = named_files(device(inference=InferenceConfig(template=template, plan=plan)))
    assert files is not None
    assert (files.template, files.plan) == (template, plan)
    assert named_files(device()) is None
