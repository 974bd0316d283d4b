"""SCAFFOLD on the device: the correction of this round's gradients, and the control after it.

Source: Karimireddy et al. 2020, arXiv:1910.06378, option II.
"""

from __future__ import annotations

import logging

import numpy as np

from aggregation.local_steps import next_control
from fedge.errors import TaskError
from fedge.messages import WeightsRequest
from fedge.params import Vector

_log = logging.getLogger(__name__)


def is_scaffold(request: WeightsRequest) -> bool:
    """Tell whether the round trains with control variates."""
    return request.hyper.client_term == "scaffold"


def correction_for(request: WeightsRequest, own: Vector | None) -> Vector | None:
    """Return c − c_i, which training adds to every gradient; None where both are zero.

    Args:
        request: carries c; none is zero, as in the first round.
        own: c_i; None is zero.

    Raises:
        TaskError: the server's control has no use or is not finite; nothing was spent.
    """
    control = request.control
    if control is not None and not is_scaffold(request):
        raise TaskError(
            "the server sent a control, which has a use with train.client_term = 'scaffold' only"
        )
    if control is not None and not np.isfinite(control).all():
        raise TaskError("the server's control is not finite; nothing was trained")
    if not is_scaffold(request) or (control is None and own is None):
        return None
    if own is None:
        return control
    return -own if control is None else control - own


def control_after(
    request: WeightsRequest, own: Vector | None, decoded: Vector, num_steps: int
) -> Vector | None:
    """Return c_i⁺ = c_i − c − delta / (K·η); None (zero) where it is not finite.

    With momentum K is what the steps sum up to in plain gradient steps, as on the server; that
    is exact for a constant gradient and a mean weighted to the early steps otherwise.

    Args:
        request: what was trained.
        own: c_i; None is zero.
        decoded: the update as the server will decode it, so that both sides agree.
        num_steps: K, >= 1.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        following = next_control(
            own,
            request.control,
            decoded,
            num_steps=num_steps,
            learning_rate=request.hyper.learning_rate,
            momentum=request.hyper.momentum,
        )
    if np.isfinite(following).all():
        return following
    _log.warning("run %s: the control is not finite; it begins anew", request.run_name)
    return None
