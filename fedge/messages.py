"""What a device answers, typed, and how it travels in Flower messages.

A stock Flower ClientApp answers with full weights. A fedge device answers with an encoded delta
in a record of its own. Every fedge message carries the protocol version. What the server asks is
in `fedge.requests`, and importable from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedge.errors import ProtocolMismatch, TransportError, UpdateRejected
from fedge.message_fields import ARRAYS as ARRAYS
from fedge.message_fields import CONFIG as CONFIG
from fedge.message_fields import METRICS as METRICS
from fedge.message_fields import (
    NUM_EXAMPLES,
    REFUSAL,
    UPDATE,
    check_protocol,
    get_field,
    get_metric,
)
from fedge.params import Layout, Vector
from fedge.protocol import PROTOCOL_VERSION as PROTOCOL_VERSION
from fedge.records import from_array_record
from fedge.requests import DeltaRequest as DeltaRequest
from fedge.requests import Downlink as Downlink
from fedge.requests import RoundKey as RoundKey
from fedge.requests import WeightsRequest as WeightsRequest
from fedge.requests import decode_request as decode_request
from fedge.requests import encode_request as encode_request

_MAX_DISTORTION = 1e9
"""More than any codec makes; a sum of such claims cannot overflow."""


@dataclass(frozen=True)
class EncodedUpdate:
    """A device's answer: an encoded delta from the parent version it names.

    Attributes:
        codec: spec of the codec that made the payload.
        num_examples: example weight; a public bucket under DP.
        epsilon: ε spent by this device so far, all rounds together; None without DP.
        num_steps: local steps that were taken, >= 1.
        distortion: ‖decoded − delta‖² / ‖delta‖²; reported, never relied on.
        holds_parent: whether the device keeps the parent in memory, so that the next request may
            carry a `Downlink` from it. A hint: a device that lost it asks for whole weights.
    """

    round: int
    parent: str
    layout_digest: str
    codec: str
    payload: bytes
    num_examples: float
    epsilon: float | None = None
    num_steps: float = 1.0
    distortion: float = 0.0
    holds_parent: bool = False


@dataclass(frozen=True)
class FullWeights:
    """A stock Flower client's answer: whole weights instead of a delta."""

    weights: Vector
    num_examples: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one client's holdout; sums are the server's business.

    Attributes:
        metrics: mean by name; clipped and noised under DP.
    """

    num_examples: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Refusal:
    """A device that says no, and why.

    Attributes:
        reason: short key to count by: ``budget``, ``protocol``, ``no-data``, ``private``,
            ``task``, ``codec``, ``stale-base`` (send whole weights).
    """

    reason: str
    detail: str


def encode_update(update: EncodedUpdate) -> RecordDict:
    """Return the content of a device's reply."""
    metrics: dict[str, int | float] = {NUM_EXAMPLES: update.num_examples}
    if update.epsilon is not None:
        metrics["epsilon"] = update.epsilon
    record = ConfigRecord(
        {
            "protocol": PROTOCOL_VERSION,
            "round": update.round,
            "parent": update.parent,
            "layout": update.layout_digest,
            "codec": update.codec,
            "payload": update.payload,
            "num-steps": update.num_steps,
            "distortion": update.distortion,
            "holds-parent": update.holds_parent,
        }
    )
    return RecordDict({UPDATE: record, METRICS: MetricRecord(metrics)})  # type: ignore[arg-type]


def decode_reply(content: RecordDict, layout: Layout) -> EncodedUpdate | FullWeights | Refusal:
    """Read a train reply on the server, fedge's own or a stock Flower client's.

    Raises:
        UpdateRejected: reason ``protocol``, ``malformed``, ``steps``, or what the weights' bytes
            say.
    """
    if REFUSAL in content.config_records:
        return _decode_refusal(content)
    num_examples = _num_examples(content)
    if UPDATE not in content.config_records:
        arrays = list(content.array_records.values())
        if len(arrays) != 1:
            raise UpdateRejected("malformed", expected="one ArrayRecord", got=len(arrays))
        return FullWeights(from_array_record(layout, arrays[0]), num_examples)
    record = content.config_records[UPDATE]
    try:
        check_protocol(record)
        return EncodedUpdate(
            round=get_field(record, "round", int),
            parent=get_field(record, "parent", str),
            layout_digest=get_field(record, "layout", str),
            codec=get_field(record, "codec", str),
            payload=get_field(record, "payload", bytes),
            num_examples=num_examples,
            epsilon=get_metric(content, "epsilon"),
            num_steps=_num_steps(record),
            distortion=_distortion(record),
            holds_parent=record.get("holds-parent") is True,
        )
    except ProtocolMismatch as error:
        raise UpdateRejected("protocol", expected=PROTOCOL_VERSION, got=str(error)) from error
    except TransportError as error:
        raise UpdateRejected("malformed", expected="a fedge update", got=str(error)) from error


def encode_evaluation(evaluation: Evaluation) -> RecordDict:
    """Return the content of a device's evaluate reply."""
    metrics = {NUM_EXAMPLES: evaluation.num_examples, **evaluation.metrics}
    return RecordDict({METRICS: MetricRecord(metrics)})  # type: ignore[arg-type]


def decode_evaluation(content: RecordDict) -> Evaluation | Refusal:
    """Read an evaluate reply on the server.

    Raises:
        UpdateRejected: reason ``malformed``, ``examples`` or ``not-finite``.
    """
    if REFUSAL in content.config_records:
        return _decode_refusal(content)
    num_examples = _num_examples(content)
    if not 0 < num_examples < math.inf:
        raise UpdateRejected("examples", expected="more than 0", got=num_examples)
    metrics = {
        name: float(value)
        for record in content.metric_records.values()
        for name, value in record.items()
        if name != NUM_EXAMPLES and isinstance(value, int | float)
    }
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UpdateRejected("not-finite", tensor=name, expected="a number", got=value)
    return Evaluation(num_examples, metrics)


def encode_refusal(refusal: Refusal) -> RecordDict:
    """Return the content of a reply that says no."""
    record = {
        "protocol": PROTOCOL_VERSION,
        "reason": refusal.reason,
        "detail": refusal.detail[:1000],
    }
    return RecordDict({REFUSAL: ConfigRecord(record)})  # type: ignore[arg-type]


def _decode_refusal(content: RecordDict) -> Refusal:
    record = content.config_records[REFUSAL]
    reason, detail = record.get("reason"), record.get("detail")
    return Refusal(
        reason[:40] if isinstance(reason, str) else "unknown",
        detail[:1000] if isinstance(detail, str) else "",
    )


def _num_steps(record: ConfigRecord) -> float:
    value = _finite(record, "num-steps")
    if value is None or value < 1:
        found = f"{record.get('num-steps')!r:.40}"
        raise UpdateRejected("steps", expected="a finite number, 1 or more", got=found)
    return value


def _distortion(record: ConfigRecord) -> float:
    value = _finite(record, "distortion")
    return 0.0 if value is None or value < 0 else min(value, _MAX_DISTORTION)


def _finite(record: ConfigRecord, name: str) -> float | None:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _num_examples(content: RecordDict) -> float:
    value = get_metric(content, NUM_EXAMPLES)
    if value is None:
        raise UpdateRejected("malformed", tensor=NUM_EXAMPLES, expected="a number", got="nothing")
    return value
