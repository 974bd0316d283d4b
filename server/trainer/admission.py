"""What is checked before a single step is taken, cheapest first."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
import numpy as np

from fedge.chunks import join_vector
from fedge.errors import ConfigError, FedgeError, TransportError
from fedge.params import Layout, Vector
from fedge.protocol import PROTOCOL_VERSION, refusal
from protos.fedge.v1 import trainer_pb2 as pb
from server.trainer.augmentations import AUGMENTATIONS
from server.trainer.objectives import OBJECTIVES
from server.trainer.optimizers import OPTIMIZERS
from server.trainer.wire import Order, order_from_proto


class Refused(FedgeError):
    """A request that is not carried out.

    Attributes:
        code: gRPC status that the caller gets with the text.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_order(message: pb.RefineSpec, layout: Layout, max_model_bytes: int) -> Order:
    """Return the order, or refuse one that cannot be carried out whatever its weights are.

    Raises:
        Refused: UNIMPLEMENTED (protocol), RESOURCE_EXHAUSTED (size), FAILED_PRECONDITION
            (another model) or INVALID_ARGUMENT (a value).
    """
    if message.protocol != PROTOCOL_VERSION:
        raise Refused(
            grpc.StatusCode.UNIMPLEMENTED,
            refusal(message.protocol),
        )
    if message.size_bytes > max_model_bytes:
        raise Refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"the model has {message.size_bytes} bytes, the trainer's max_model_bytes is "
            f"{max_model_bytes}",
        )
    if message.layout_digest != layout.digest:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the model's layout is {message.layout_digest[:12] or 'missing'}, the trainer's task "
            f"has {layout.digest[:12]}: configure the same task on both",
        )
    if message.size_bytes != layout.size_bytes:
        raise _invalid(f"size_bytes is {message.size_bytes}, expected {layout.size_bytes}")
    try:
        OBJECTIVES[message.objective]
        AUGMENTATIONS[message.augmentation]
        OPTIMIZERS[message.optimizer]
        return order_from_proto(message)
    except ConfigError as error:
        raise _invalid(str(error)) from error


def receive_weights(chunks: Iterable[bytes], order: Order) -> Vector:
    """Return the weights that follow an order, holding no more than it announced.

    Raises:
        Refused: INVALID_ARGUMENT: too many or too few bytes, other weights than the order's
            parent, or weights that are not finite.
    """
    try:
        weights, found = join_vector(chunks, size_bytes=order.size_bytes)
    except TransportError as error:
        raise _invalid(str(error)) from error
    if found != order.parent:
        raise _invalid(f"the weights' digest is {found[:12]}, announced was {order.parent[:12]}")
    if not np.isfinite(weights).all():
        raise _invalid("the weights are not finite")
    return weights


def _invalid(message: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
