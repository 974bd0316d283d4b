"""Refinements as they travel between the ServerApp and the trainer, both directions."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields, replace

from fedge.config import build
from fedge.params import Layout, Vector, vector_digest
from fedge.protocol import PROTOCOL_VERSION
from protos.fedge.v1 import trainer_pb2 as pb
from server.trainer.spec import Refinement, RefineSpec


@dataclass(frozen=True)
class Order:
    """One refinement asked for: which weights, and what to do with them.

    Attributes:
        parent: digest of the weights that follow.
    """

    run_name: str
    parent: str
    layout_digest: str
    size_bytes: int
    spec: RefineSpec

    @property
    def key(self) -> Order:
        """The order without its deadline: orders with equal keys have equal results."""
        return replace(self, spec=replace(self.spec, deadline_s=1.0))

    @property
    def key_digest(self) -> str:
        """A name for the order's key, as long on every machine and in every process."""
        return hashlib.sha256(repr(self.key).encode()).hexdigest()[:32]


def order_for(run_name: str, layout: Layout, weights: Vector, spec: RefineSpec) -> Order:
    """Return the order to refine these weights."""
    return Order(run_name, vector_digest(weights), layout.digest, layout.size_bytes, spec)


def order_to_proto(order: Order) -> pb.RefineSpec:
    """Return the first message of a request stream."""
    return pb.RefineSpec(
        protocol=PROTOCOL_VERSION,
        run_name=order.run_name,
        parent=order.parent,
        layout_digest=order.layout_digest,
        size_bytes=order.size_bytes,
        **asdict(order.spec),
    )


def order_from_proto(message: pb.RefineSpec) -> Order:
    """Read what `order_to_proto` wrote; its protocol version is the caller's to check.

    Raises:
        ConfigError: a value of the spec is out of range; names it.
    """
    spec = {field.name: getattr(message, field.name) for field in fields(RefineSpec)}
    return Order(
        run_name=message.run_name,
        parent=message.parent,
        layout_digest=message.layout_digest,
        size_bytes=message.size_bytes,
        spec=build(RefineSpec, spec),
    )


def summary_of(refinement: Refinement) -> pb.RefineSummary:
    """Return the message that goes before the refined weights."""
    return pb.RefineSummary(
        digest=vector_digest(refinement.weights),
        size_bytes=refinement.weights.nbytes,
        steps=refinement.num_steps,
        seconds=refinement.seconds,
        loss_first=refinement.loss_first,
        loss_last=refinement.loss_last,
    )
