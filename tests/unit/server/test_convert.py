import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedge.errors import ModelError
from fedge.task import EdgeFiles, Task
from fedge.tasks.digits import Digits
from fedge.tasks.sensor import Sensor
from fedge.tflite.patch import Patcher
from fedge.tflite.plan import Plan
from fedge.tflite.runner import Runner
from fedge.weights import layout_of, write_vector
from server.convert import (
    INTERPRETER_VARIABLE,
    convert_in_subprocess,
    find_converter,
    main,
)
from tests.unit.server.convertible_tasks import MODELS

DIGITS = "fedge.tasks.digits:Digits"
SHIPPED: list[tuple[str, Task]] = [(DIGITS, Digits()), ("fedge.tasks.sensor:Sensor", Sensor())]
SMALL = "tests.unit.server.convertible_tasks:Small"
needs_no_converter = pytest.mark.skipif(
    importlib.util.find_spec("litert_torch") is not None, reason="the converter is installed here"
)


@pytest.fixture
def converter() -> str:
    python = find_converter()
    if python is None:
        pytest.skip(f"no converter: run make convert-env, or set {INTERPRETER_VARIABLE}")
    return python


def fake_python(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def read(files: EdgeFiles) -> tuple[bytes, Plan]:
    template = files.template.read_bytes()
    return template, Patcher.from_bytes(template, files.plan.read_bytes()).plan


@needs_no_converter
def test_without_the_converter_both_sides_say_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--task", DIGITS, "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: the TFLite converter is not installed")
    with pytest.raises(ModelError, match=r'make convert-env.*"fedge\[convert\]"'):
        convert_in_subprocess(DIGITS, {}, tmp_path, sys.executable)
    assert list(tmp_path.iterdir()) == []


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"/no/such/python cannot be run.*make convert-env"):
        convert_in_subprocess(DIGITS, {}, tmp_path, "/no/such/python")


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo noise >&2; echo 'error: what is wrong' >&2; exit 2", "failed: what is wrong$"),
        ("echo 'ModuleNotFoundError: No module named numpy' >&2; exit 1", "make convert-env"),
        ("echo last words >&2; exit 139", "exit status 139: last words"),
        ("exit 1", "exit status 1: it said nothing"),
    ],
)
def test_a_failed_conversion_says_what_the_process_said(
    script: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=text):
        convert_in_subprocess(DIGITS, {}, tmp_path, fake_python(tmp_path, script))


def test_a_conversion_that_hangs_is_ended(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "exec sleep 60")
    with pytest.raises(ModelError, match=r"took longer than 0\.2 s"):
        convert_in_subprocess(DIGITS, {}, tmp_path, python, deadline_s=0.2)


def test_options_travel_on_standard_input_and_never_in_argv(tmp_path: Path) -> None:
    python = fake_python(tmp_path, f'echo "$@" > {tmp_path}/argv; cat > {tmp_path}/stdin')
    convert_in_subprocess(DIGITS, {"token": "secret"}, tmp_path / "out", python)
    assert json.loads((tmp_path / "stdin").read_text()) == {"token": "secret"}
    assert "secret" not in (tmp_path / "argv").read_text()


@pytest.mark.parametrize("options", ["[1]", "{", "nothing"])
def test_options_that_are_no_object_are_refused(
    options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--task", DIGITS, "--out", str(tmp_path), "--options", options]) == 2
    assert "--options" in capsys.readouterr().err


def test_the_interpreter_of_the_environment_variable_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(INTERPRETER_VARIABLE, "/some/python")
    assert find_converter() == "/some/python"


@pytest.mark.parametrize("task", [task for _, task in SHIPPED], ids=lambda task: task.name)
def test_a_shipped_plan_fits_its_model(task: Task) -> None:
    files = task.edge_files()
    assert files is not None
    template, plan = read(files)
    assert plan.layout == layout_of(task.build_model())
    assert (plan.unused, plan.ties) == ((), ())
    assert np.isfinite(Patcher(template, plan).shipped_weights()).all()


@pytest.mark.convert
@pytest.mark.slow
@pytest.mark.parametrize(("reference", "task"), SHIPPED, ids=["digits", "sensor"])
def test_converting_again_gives_what_is_shipped(
    reference: str, task: Task, tmp_path: Path, converter: str
) -> None:
    shipped = task.edge_files()
    assert shipped is not None
    ours, plan = read(shipped)
    theirs, remade = read(convert_in_subprocess(reference, {}, tmp_path, converter))
    assert remade == plan
    weights = np.random.default_rng(5).normal(size=plan.layout.size).astype(np.float32)
    patched = Patcher(ours, plan).patch(plan.layout, weights)
    assert Patcher(theirs, remade).patch(plan.layout, weights) == patched


@pytest.mark.convert
@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv", "recurrent", "tied"])
def test_a_patched_model_answers_as_torch_does(name: str, tmp_path: Path, converter: str) -> None:
    template, plan = read(convert_in_subprocess(SMALL, {"model": name}, tmp_path, converter))
    model = MODELS[name]().eval()
    assert plan.layout == layout_of(model)
    weights = np.random.default_rng(6).normal(size=plan.layout.size).astype(np.float32)
    write_vector(model, plan.layout, weights)
    inputs = np.random.default_rng(7).random((40, 12), np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(inputs)).numpy()
    found = Runner(Patcher(template, plan).patch(plan.layout, weights)).run(inputs)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    if name == "tied":
        assert plan.ties == (("encode.weight", "decode.weight"),)
        assert plan.unused == ("spare",)


@pytest.mark.convert
@pytest.mark.slow
def test_a_model_that_folds_is_refused_with_what_to_do(tmp_path: Path, converter: str) -> None:
    with pytest.raises(ModelError, match="computed it from several weights"):
        convert_in_subprocess(SMALL, {"model": "folding"}, tmp_path, converter)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.convert
@pytest.mark.slow
def test_an_unknown_task_is_an_error_of_one_line(tmp_path: Path, converter: str) -> None:
    with pytest.raises(ModelError, match=r"failed: task\.name: 'no\.such:Task' cannot be loaded"):
        convert_in_subprocess("no.such:Task", {}, tmp_path, converter)
