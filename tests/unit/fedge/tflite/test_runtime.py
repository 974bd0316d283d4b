import sys
import types
from pathlib import Path

import numpy as np
import pytest

import fedge.tasks
from fedge.errors import ModelError
from fedge.tflite import runtime
from fedge.tflite.runtime import load_interpreter

FOLDER = Path(fedge.tasks.__file__).parent / "digits_edge"
TEMPLATE = (FOLDER / "template.tflite").read_bytes()


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(ModelError, match="refuses the model"):
        load_interpreter(b"no model at all", 1)
    with pytest.raises(ModelError, match="refuses the model"):
        load_interpreter(b"", 1)


def test_without_any_runtime_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "_PACKAGES", ("no_such_runtime",))
    with pytest.raises(ModelError, match=r'no TFLite runtime is installed; pip install "fedge\['):
        load_interpreter(TEMPLATE, 1)


def test_the_old_runtime_beside_a_new_numpy_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("tflite_runtime")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "tflite_runtime", module)
    monkeypatch.setattr(runtime, "_PACKAGES", ("tflite_runtime",))
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(ModelError, match=r'numpy 2\.1\.0: pip install .*"numpy<2"'):
        load_interpreter(TEMPLATE, 1)
