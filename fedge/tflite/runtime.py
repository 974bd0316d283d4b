"""The TFLite interpreter, whichever of its two packages is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedge.errors import ModelError

# ai-edge-litert is the successor and works with every numpy.
_PACKAGES = ("ai_edge_litert", "tflite_runtime")
_INSTALL = 'pip install "fedge[infer]" (or "fedge[infer-tflite]")'


class Interpreter(Protocol):
    """What both packages' ``Interpreter`` offers and we use."""

    def allocate_tensors(self) -> None:
        """Plan memory and apply delegates."""
        ...

    def get_input_details(self) -> list[dict[str, Any]]:
        """Describe the primary graph's inputs."""
        ...

    def get_output_details(self) -> list[dict[str, Any]]:
        """Describe the primary graph's outputs."""
        ...

    def get_signature_list(self) -> dict[str, dict[str, list[str]]]:
        """Return input and output names by signature."""
        ...

    def get_signature_runner(self, signature_key: str) -> Any:
        """Return a callable for one signature; while it lives, `invoke` refuses."""
        ...

    def set_tensor(self, tensor_index: int, value: npt.NDArray[Any]) -> None:
        """Copy an input in."""
        ...

    def invoke(self) -> None:
        """Run the primary graph."""
        ...

    def get_tensor(self, tensor_index: int) -> npt.NDArray[Any]:
        """Copy an output out."""
        ...


def load_interpreter(model: bytes, num_threads: int) -> Interpreter:
    """Return an interpreter of a model's bytes, its tensors allocated.

    The bytes must have been checked (`Patcher`): a runtime trusts them.

    Raises:
        ModelError: no usable runtime is installed, or the runtime refuses the model.
    """
    with _refusals():
        interpreter = open_interpreter(model, num_threads)
        # Before any signature runner is asked for: otherwise XNNPACK is not applied.
        interpreter.allocate_tensors()
    return interpreter


def open_interpreter(model: bytes, num_threads: int = 1) -> Interpreter:
    """Return an interpreter that can say what the model is and not run it yet; takes no time.

    Raises:
        ModelError: as `load_interpreter`.
    """
    make = interpreter_class()
    with _refusals():
        return make(model_content=bytes(model), num_threads=num_threads)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"the TFLite runtime refuses the model: {error}") from error


def interpreter_class() -> Callable[..., Interpreter]:
    """Return the class of the first package that is installed and works here.

    Raises:
        ModelError: there is none; says what to install.
    """
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            continue
        if package == "tflite_runtime" and int(np.__version__.split(".")[0]) >= 2:
            raise ModelError(
                f"tflite-runtime does not work with numpy {np.__version__}: "
                f'{_INSTALL}, which does, or pip install "numpy<2"'
            )
        try:
            module = importlib.import_module(f"{package}.interpreter")
        except ImportError as error:
            raise ModelError(
                f"{package} is installed but cannot be imported ({error}); {_INSTALL}"
            ) from error
        found: Callable[..., Interpreter] = module.Interpreter
        return found
    raise ModelError(f"no TFLite runtime is installed; {_INSTALL}")
