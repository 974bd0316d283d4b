"""What a device carries from one round of a run to the next, and how it encodes with it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from aggregation.contracts import Codec, Encoded, Memory
from edge_client.scaffold import control_after, is_scaffold
from edge_client.worker import Trained
from fedge.errors import ConfigError, TaskError
from fedge.messages import WeightsRequest
from fedge.params import Layout, Vector
from fedge.personal import PersonalPart, Tensors, personal_part

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RoundMemory:
    """Memory of one run; it commits together with the reply that made it.

    Attributes:
        layout_digest: model that all of it belongs to.
        codec: spec of the codec that ``codec_state`` belongs to.
        codec_state: error feedback.
        control: SCAFFOLD's c_i, ``[layout.size]``; None is zero.
        personal: this device's own tensors by name; None is those of the global model.
    """

    layout_digest: str
    codec: str
    codec_state: Memory | None = None
    control: Vector | None = None
    personal: Tensors | None = None

    def to_memory(self) -> Memory:
        """Return it as arrays and JSON scalars; empty where there is nothing to remember."""
        if not self.codec_state and self.control is None and self.personal is None:
            return {}
        return {
            "layout": self.layout_digest,
            "codec": self.codec,
            "codec_state": self.codec_state,
            "control": self.control,
            "personal": self.personal,
        }


def recall(stored: Memory, request: WeightsRequest) -> RoundMemory:
    """Return what is remembered for a request; what belongs to another model begins anew.

    Error feedback of another codec is dropped: what one codec left out says nothing of what the
    next one will. So is that of other personal layers, which may hold what is personal now.

    Raises:
        TaskError: the personal layers that the server names are not those of a model.
    """
    part = part_of(request)
    layout_digest = request.layout.digest
    if stored.get("layout") != layout_digest:
        return RoundMemory(layout_digest, request.codec)
    same_codec = stored.get("codec") == request.codec
    own = stored.get("personal")
    before = set(own) if isinstance(own, dict) else set()
    same_layers = before == set(() if part is None else part.names)
    return RoundMemory(
        layout_digest,
        request.codec,
        stored.get("codec_state") if same_codec and same_layers else None,
        _control(stored.get("control"), request),
        _personal(own, part, request.run_name),
    )


def part_of(request: WeightsRequest) -> PersonalPart | None:
    """Return what of the request's model stays on this device; None for nothing.

    Raises:
        TaskError: the personal layers that the server names are not those of a model.
    """
    try:
        return personal_part(request.layout, request.hyper.personal_layers)
    except ConfigError as error:
        raise TaskError(str(error)) from error


def start_of(memory: RoundMemory, request: WeightsRequest) -> Vector | None:
    """Return the global weights with this device's personal part in them.

    None where there are no personal layers. A device that has no personal part yet takes that of
    the global model.
    """
    part = part_of(request)
    if part is None:
        return None
    own = memory.personal
    return request.weights if own is None else part.put(request.weights, own)


def with_personal(stored: Memory, layout: Layout, weights: Vector) -> Vector:
    """Return weights with the personal part of a memory in them; as they are where it has none."""
    tensors = stored.get("personal")
    if not isinstance(tensors, dict) or stored.get("layout") != layout.digest:
        return weights
    part = PersonalPart(layout, tuple(name for name in layout.names if name in tensors))
    return part.put(weights, tensors) if part.fits(tensors) else weights


def encode_round(
    memory: RoundMemory,
    codec: Codec[Any],
    request: WeightsRequest,
    trained: Trained,
    rng: np.random.Generator,
) -> tuple[Encoded, RoundMemory]:
    """Encode a trained delta and return what the next round is to remember.

    Under DP the delta is clipped and noised before it comes here, so that error feedback,
    control and personal part are made of what was already paid for. Of the personal part nothing
    is encoded, so that error feedback and control know nothing of it.
    """
    part, delta, personal = part_of(request), trained.delta, None
    if part is not None:
        before = memory.personal or part.take(request.weights)
        personal = {name: before[name] + moved for name, moved in part.take(delta).items()}
        delta = part.without(delta)
    state = codec.init(request.layout)
    if memory.codec_state is not None:
        if _fits(memory.codec_state, state):
            state = memory.codec_state
        else:
            _log.warning("run %s: stored error feedback does not fit", request.run_name)
    encoded, state = codec.encode(delta, state, rng)
    control = memory.control
    if is_scaffold(request):
        decoded = codec.decode(encoded.payload, request.layout)
        control = control_after(request, control, decoded, trained.num_steps)
        if part is not None and control is not None:
            control = part.without(control)  # a codec may decode zeros to a little noise
    return encoded, RoundMemory(memory.layout_digest, memory.codec, state, control, personal)


def _fits(stored: object, fresh: object) -> bool:
    """Tell whether a stored state has the form of a fresh one, down to dtypes and shapes."""
    if isinstance(stored, dict) and isinstance(fresh, dict):
        return stored.keys() == fresh.keys() and all(
            _fits(stored[name], fresh[name]) for name in fresh
        )
    if isinstance(stored, np.ndarray) and isinstance(fresh, np.ndarray):
        return bool(stored.dtype == fresh.dtype and stored.shape == fresh.shape)
    return type(stored) is type(fresh)


def _control(stored: object, request: WeightsRequest) -> Vector | None:
    if stored is None:
        return None
    if not isinstance(stored, np.ndarray) or stored.shape != (request.layout.size,):
        _log.warning("run %s: the stored control does not fit; it begins anew", request.run_name)
        return None
    return stored


def _personal(stored: object, part: PersonalPart | None, run_name: str) -> Tensors | None:
    if stored is None or part is None:
        return None
    if not part.fits(stored):
        _log.warning("run %s: other layers are personal now; they begin anew", run_name)
        return None
    return cast("Tensors", stored)
