"""One model in one interpreter, run on batches of any length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import ModelError
from fedge.tflite.runtime import load_interpreter, open_interpreter

Array = npt.NDArray[Any]
SIGNATURE_PREFIX = "batch_"


class Runner:
    """A model with one input and one output; not safe across threads.

    The primary graph takes one example. Further signatures called ``batch_<B>`` take B at once:
    TFLite cannot change the batch of a converted graph.

    Attributes:
        input_shape, output_shape: of one example, without the batch dimension.
        batch_sizes: what one call of the runtime can take, largest first; ends with 1.
    """

    def __init__(self, model: bytes, num_threads: int = 1) -> None:
        self._interpreter = load_interpreter(model, num_threads)
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ModelError(
                f"the model has {len(inputs)} inputs and {len(outputs)} outputs; expected one each"
            )
        self._input, self._output = int(inputs[0]["index"]), int(outputs[0]["index"])
        batch, *rest = map(int, inputs[0]["shape"])
        if batch != 1:
            raise ModelError(f"the model's first graph takes batches of {batch}; expected 1")
        self.input_shape: tuple[int, ...] = tuple(rest)
        self.output_shape: tuple[int, ...] = tuple(map(int, outputs[0]["shape"][1:]))
        self.input_dtype: np.dtype[Any] = np.dtype(inputs[0]["dtype"])
        self.output_dtype: np.dtype[Any] = np.dtype(outputs[0]["dtype"])
        self._signatures = _batch_signatures(self._interpreter.get_signature_list())
        self.batch_sizes = (*self._signatures, 1)

    def run_one(self, example: Array) -> Array:
        """Return the output of one example; shape and dtype must be the model's.

        Raises:
            ModelError: the runtime failed.
        """
        interpreter = self._interpreter
        try:
            interpreter.set_tensor(self._input, example[np.newaxis])
            interpreter.invoke()
            return interpreter.get_tensor(self._output).reshape(self.output_shape)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"the TFLite runtime failed: {error}") from error

    def parts(self, length: int) -> Iterator[slice]:
        """Cut a batch of that length into what one call of the runtime takes, in order.

        Nothing is padded: the work of a full call costs as much as its examples one by one.
        """
        done = 0
        for size in self.batch_sizes:
            while length - done >= size:
                yield slice(done, done + size)
                done += size

    def run_part(self, part: Array) -> Array:
        """Return the outputs ``[B, ...]`` of as many examples as one call takes (`batch_sizes`).

        Raises:
            ModelError: the runtime failed.
        """
        if len(part) == 1:
            return self.run_one(part[0])[np.newaxis]
        name, input_name, output_name = self._signatures[len(part)]
        try:
            # Made anew each time: while a signature runner lives, `invoke` refuses.
            run = self._interpreter.get_signature_runner(name)
            outputs: Array = run(**{input_name: np.ascontiguousarray(part)})[output_name]
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"the TFLite runtime failed: {error}") from error
        return outputs

    def run(self, batch: Array) -> Array:
        """Return the outputs ``[B, ...]`` of a batch ``[B, ...]`` of any length.

        Raises:
            ModelError: the runtime failed.
        """
        outputs = np.empty((len(batch), *self.output_shape), self.output_dtype)
        for part in self.parts(len(batch)):
            outputs[part] = self.run_part(batch[part])
        return outputs


def batch_sizes_of(model: bytes) -> tuple[int, ...]:
    """Return the batches above 1 that a model has graphs for, largest first; takes no time.

    Raises:
        ModelError: the runtime refuses the model.
    """
    return tuple(_batch_signatures(open_interpreter(model).get_signature_list()))


def _batch_signatures(
    signatures: dict[str, dict[str, list[str]]],
) -> dict[int, tuple[str, str, str]]:
    """Return (name, input name, output name) by batch size above 1, largest first."""
    found = {}
    for name, tensors in signatures.items():
        size = name.removeprefix(SIGNATURE_PREFIX)
        if name.startswith(SIGNATURE_PREFIX) and size.isdigit() and int(size) > 1:
            found[int(size)] = (name, tensors["inputs"][0], tensors["outputs"][0])
    return dict(sorted(found.items(), reverse=True))
