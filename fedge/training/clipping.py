"""Sums of per-example gradients, each clipped to one norm, by Opacus' ghost clipping.

One backward pass gives each example's gradient norm, a second one the sum of the clipped
gradients; no gradient an example is ever held. Opacus is imported on first use.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.training.sgd import trained_parameters

# What Opacus leaves on a layer when a step is broken off between forward and backward.
_LAYER_TRACES = ("activations", "max_batch_len")


class GhostClipping:
    """A model whose batches' clipped gradients can be summed; `ghost_clipping` makes one.

    Args:
        hooked: the model as Opacus wrapped it.
    """

    def __init__(self, hooked: Any, parameters: list[nn.Parameter]) -> None:
        self._hooked = hooked
        self._parameters = parameters

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the model's outputs."""
        outputs: Tensor = self._hooked(inputs)
        return outputs

    def norms(self, losses: Tensor) -> Tensor:
        """Return each example's gradient norm over all trained parameters, ``[B]``.

        Raises:
            TaskError: a parameter takes no part, so its share of the norm is unknown.
        """
        for parameter in self._parameters:
            parameter._norm_sample = None  # type: ignore[attr-defined]
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        if any(parameter._norm_sample is None for parameter in self._parameters):  # type: ignore[attr-defined]
            raise TaskError(
                "a trainable parameter takes no part in the model's output, so DP-SGD cannot "
                "clip it: remove it or set requires_grad = False"
            )
        norms: Tensor = self._hooked.get_norm_sample()
        return norms.reshape(-1)

    def clipped_sums(self, losses: Tensor) -> list[Tensor]:
        """Return the sum of the clipped gradients, one tensor a parameter; call `norms` first."""
        self._hooked.disable_hooks()
        for parameter in self._parameters:
            parameter.grad = None
        (losses * self._hooked.get_clipping_coef().reshape(-1)).sum().backward()
        self._hooked.enable_hooks()
        return [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in self._parameters
        ]


@contextmanager
def ghost_clipping(model: nn.Module, clip_norm: float) -> Iterator[GhostClipping]:
    """Hook the model in training mode, and take every trace of it off again.

    Raises:
        TaskError: Opacus cannot clip this model (tied parameters, buffers).
    """
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    with warnings.catch_warnings():
        # The first layer's inputs need no gradient; its hook then works on the outputs.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        hooked = None
        try:
            hooked = GradSampleModuleFastGradientClipping(
                model, max_grad_norm=clip_norm, loss_reduction="sum", use_ghost_clipping=True
            )
            yield GhostClipping(hooked, trained_parameters(model))
        except NotImplementedError as error:
            raise TaskError(f"the model cannot be trained with DP-SGD: {error}") from error
        finally:
            if hooked is not None:
                hooked.to_standard_module()
            for layer in model.modules():
                for name in _LAYER_TRACES:
                    layer.__dict__.pop(name, None)
