from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError, TaskError
from fedge.task import Examples, Task, load_task

SOURCE = """
from fedge.errors import TaskError

class Good:
    name = "good"
    input_shape = (3,)
    def __init__(self, seed=0, fail=None):
        self.seed = seed
        if fail == "task":
            raise TaskError("no data in the folder")
        if fail == "value":
            raise ValueError("seed is odd")
    def build_model(self): ...
    def loss(self, outputs, targets): ...
    def metrics(self, outputs, targets): ...
    def client_data(self, client, num_clients): ...
    def device_data(self, store, split): ...
    def cloud_data(self): ...
    def edge_files(self): ...

made = Good(seed=5)

class Half:
    name = "half"
    input_shape = (3,)
    def build_model(self): ...
"""


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks_of_test.py").write_text(SOURCE)
    (tmp_path / "broken_task.py").write_text("def broken(:\n")
    (tmp_path / "raising_task.py").write_text("raise RuntimeError('no display')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("tasks_of_test", "broken_task", "raising_task"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_class_is_made_with_options_and_an_object_is_taken_as_it_is() -> None:
    task: Any = load_task("tasks_of_test:Good", seed=3)
    assert task.seed == 3
    assert isinstance(task, Task)
    made: Any = load_task("tasks_of_test:made")
    assert made.seed == 5


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("", "not of the form module:attribute"),
        ("tasks_of_test", "not of the form module:attribute"),
        (":Good", "not of the form module:attribute"),
        ("tasks_of_test:", "not of the form module:attribute"),
        ("absent_module:Task", "No module named 'absent_module'"),
        ("tasks_of_test:Absent", "has no attribute 'Absent'"),
        (".relative:Task", "cannot be loaded"),
        ("broken_task:Task", "SyntaxError"),
        ("raising_task:Task", "RuntimeError: no display"),
        ("os:getcwd", "is a str, not a Task"),
        ("tasks_of_test:Half", "it lacks client_data, cloud_data, device_data"),
    ],
)
def test_a_reference_that_gives_no_task_names_key_and_reason(reference: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task(reference)
    assert caught.value.key == "task.name"
    assert text in str(caught.value)
    assert not reference or repr(reference) in str(caught.value)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot be made.*'sead'"):
        load_task("tasks_of_test:Good", sead=3)


def test_options_for_an_object_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^task\.options: .*takes no options"):
        load_task("tasks_of_test:made", seed=3)


def test_what_a_task_says_itself_passes_and_what_it_raises_is_mapped() -> None:
    with pytest.raises(TaskError, match="no data in the folder"):
        load_task("tasks_of_test:Good", fail="task")
    with pytest.raises(ConfigError, match="ValueError: seed is odd"):
        load_task("tasks_of_test:Good", fail="value")


def test_examples_belong_together_and_subsets_keep_them_so() -> None:
    examples = Examples(np.arange(12).reshape(4, 3), np.arange(4))
    assert len(examples) == 4
    assert examples.subset(np.array([2, 0])).targets.tolist() == [2, 0]
    assert examples.subset(examples.targets > 1).inputs.tolist() == [[6, 7, 8], [9, 10, 11]]
    with pytest.raises(TaskError, match="4 inputs but 3 targets"):
        Examples(np.zeros((4, 3)), np.zeros(3))
