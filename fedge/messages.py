"""What server and device say to each other, typed, and how it travels in Flower messages.

A train message carries the global weights as an ordinary ``ArrayRecord`` and a ``ConfigRecord``,
so a stock Flower ClientApp can answer it with full weights. A fedge device answers with an
encoded delta in a record of its own. Every fedge message carries the protocol version.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedge.config import build
from fedge.errors import ConfigError, ProtocolMismatch, TaskError, TransportError, UpdateRejected
from fedge.params import Layout, Vector, vector_digest
from fedge.protocol import PROTOCOL_VERSION as PROTOCOL_VERSION
from fedge.records import from_array_record, layout_of_record, to_array_record
from fedge.settings import Hyperparameters

# Record names; "arrays", "config" and "metrics" are those of Flower's own strategies.
ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
UPDATE = "update"
REFUSAL = "refusal"
NUM_EXAMPLES = "num-examples"


@dataclass(frozen=True)
class RoundKey:
    """What makes a round the same round: asked again, a device repeats its stored reply."""

    run_name: str
    round: int
    parent: str
    hyper: str

    def __str__(self) -> str:
        """Return one line that can be a database key."""
        return f"{self.run_name}/{self.round}/{self.parent}/{self.hyper}"


@dataclass(frozen=True)
class WeightsRequest:
    """A request that carries the global model: train on it or evaluate it.

    Attributes:
        weights: global model; its digest is the parent version that a reply must name.
        num_rounds: rounds planned in this run, so that a device can plan its budget.
    """

    run_name: str
    round: int
    num_rounds: int
    layout: Layout
    weights: Vector
    hyper: Hyperparameters

    @property
    def parent(self) -> str:
        """Digest of the weights."""
        return vector_digest(self.weights)

    @property
    def key(self) -> RoundKey:
        """Key of the round."""
        return RoundKey(self.run_name, self.round, self.parent, self.hyper.digest)


@dataclass(frozen=True)
class EncodedUpdate:
    """A device's answer: an encoded delta from the parent version it names.

    Attributes:
        num_examples: example weight; a public bucket under DP.
        codec: name of the codec that made the payload.
        epsilon: ε spent by this device so far, all rounds together; None without DP.
    """

    round: int
    parent: str
    layout_digest: str
    codec: str
    payload: bytes
    num_examples: float
    epsilon: float | None = None


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
        reason: short key to count by: ``budget``, ``protocol``, ``no-data``, ``private``.
    """

    reason: str
    detail: str


def encode_request(request: WeightsRequest) -> RecordDict:
    """Return the content of a train or evaluate message."""
    config: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "run-name": request.run_name,
        "server-round": request.round,
        "num-rounds": request.num_rounds,
        **{key.replace("_", "-"): value for key, value in asdict(request.hyper).items()},
    }
    return RecordDict(
        {ARRAYS: to_array_record(request.layout, request.weights), CONFIG: ConfigRecord(config)}
    )


def decode_request(content: RecordDict) -> WeightsRequest:
    """Read a train or evaluate message on the device.

    Raises:
        ProtocolMismatch: the server speaks another version.
        TransportError: a field is missing or malformed.
    """
    config = _record(content, CONFIG)
    _check_protocol(config)
    try:
        layout = layout_of_record(content.array_records[ARRAYS])
        return WeightsRequest(
            run_name=_get(config, "run-name", str),
            round=_get(config, "server-round", int),
            num_rounds=_get(config, "num-rounds", int),
            layout=layout,
            weights=from_array_record(layout, content.array_records[ARRAYS]),
            hyper=_decode_hyper(config),
        )
    except KeyError as error:
        raise TransportError(f"the server's message has no record {error}") from error
    except (UpdateRejected, TaskError) as error:
        raise TransportError(f"the server's weights are malformed: {error}") from error


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
        }
    )
    return RecordDict({UPDATE: record, METRICS: MetricRecord(metrics)})  # type: ignore[arg-type]


def decode_reply(content: RecordDict, layout: Layout) -> EncodedUpdate | FullWeights | Refusal:
    """Read a train reply on the server, fedge's own or a stock Flower client's.

    Raises:
        UpdateRejected: reason ``protocol``, ``malformed``, or what the weights' bytes say.
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
        _check_protocol(record)
        return EncodedUpdate(
            round=_get(record, "round", int),
            parent=_get(record, "parent", str),
            layout_digest=_get(record, "layout", str),
            codec=_get(record, "codec", str),
            payload=_get(record, "payload", bytes),
            num_examples=num_examples,
            epsilon=_metric(content, "epsilon"),
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


def _decode_hyper(config: ConfigRecord) -> Hyperparameters:
    values = {}
    for field in fields(Hyperparameters):
        kind = int if field.type in (int, "int") else float
        values[field.name] = _get(config, field.name.replace("_", "-"), kind)
    try:
        return build(Hyperparameters, values)
    except ConfigError as error:
        raise TransportError(f"the server's hyperparameters cannot be used: {error}") from error


def _record(content: RecordDict, name: str) -> ConfigRecord:
    if name not in content.config_records:
        raise TransportError(f"the message has no record {name!r}; it is not from a fedge server")
    return content.config_records[name]


def _check_protocol(record: ConfigRecord) -> None:
    version = record.get("protocol")
    if version != PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"the other side speaks protocol {version!r}, this side {PROTOCOL_VERSION}; "
            "upgrade the older of the two"
        )


def _get(record: ConfigRecord, name: str, kind: type[Any]) -> Any:
    value = record.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = type(value).__name__ if isinstance(value, bytes | list) else f"{value!r:.80}"
        raise TransportError(f"field {name!r} should be {kind.__name__}, got {found}")
    return value


def _metric(content: RecordDict, name: str) -> float | None:
    for record in content.metric_records.values():
        value = record.get(name)
        if isinstance(value, int | float):
            return float(value)
    return None


def _num_examples(content: RecordDict) -> float:
    value = _metric(content, NUM_EXAMPLES)
    if value is None:
        raise UpdateRejected("malformed", tensor=NUM_EXAMPLES, expected="a number", got="nothing")
    return value
