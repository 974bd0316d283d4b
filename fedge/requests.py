"""What the server asks of a device, typed, and how it travels in Flower messages.

A request carries the global weights as an ordinary ``ArrayRecord`` and a ``ConfigRecord``, so a
stock Flower ClientApp can answer it. A device that said it holds an earlier version may get a
`Downlink` in place of the weights: encoded deltas that lead from that version to this one.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedge.config import build
from fedge.errors import ConfigError, TaskError, TransportError, UpdateRejected
from fedge.message_fields import (
    ARRAYS,
    CONFIG,
    CONTROL,
    DOWNLINK,
    check_protocol,
    get_field,
    record_named,
)
from fedge.params import Layout, Vector, vector_digest
from fedge.protocol import PROTOCOL_VERSION
from fedge.records import from_array_record, layout_of_record, to_array_record
from fedge.settings import Hyperparameters

MAX_DOWNLINK_PAYLOADS = 64
"""Longest chain of deltas; a device further behind gets whole weights."""
MAX_CODEC_LENGTH = 80

_CODEC_TEXT = re.compile(rf"[a-z0-9:+._-]{{1,{MAX_CODEC_LENGTH}}}")
_DIGEST_TEXT = re.compile(r"[0-9a-f]{64}")
# Annotations are text here, as in every module that postpones their evaluation.
_FIELD_KINDS: dict[str, type[Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "tuple[str, ...]": list,
}


@dataclass(frozen=True)
class RoundKey:
    """What makes a round the same round: asked again, a device repeats its stored reply."""

    run_name: str
    round: int
    parent: str
    hyper: str
    codec: str = "raw"

    def __str__(self) -> str:
        """Return one line that can be a database key; only the run name may hold a slash."""
        return f"{self.run_name}/{self.round}/{self.parent}/{self.hyper}/{self.codec}"


@dataclass(frozen=True)
class WeightsRequest:
    """A request that carries the global model: train on it or evaluate it.

    Attributes:
        weights: global model; its digest is the parent version that a reply must name.
        num_rounds: rounds planned in this run, so that a device can plan its budget.
        codec: spec of the codec that the reply is to be encoded with.
        control: SCAFFOLD's server control, ``[layout.size]``; None where it is not used. It
            belongs to the parent version, so the key does not name it.
        keep_parent: whether the device is to hold the weights, so that a later request may
            carry a delta against them.
    """

    run_name: str
    round: int
    num_rounds: int
    layout: Layout
    weights: Vector
    hyper: Hyperparameters
    codec: str = "raw"
    control: Vector | None = None
    keep_parent: bool = False

    @property
    def parent(self) -> str:
        """Digest of the weights."""
        return vector_digest(self.weights)

    @property
    def key(self) -> RoundKey:
        """Key of the round."""
        return RoundKey(self.run_name, self.round, self.parent, self.hyper.digest, self.codec)


@dataclass(frozen=True)
class Downlink:
    """Encoded deltas that travel in place of the global model.

    Attributes:
        base: digest of the vector that the device must hold.
        parent: digest that base plus every decoded payload, added in order in float32, must have.
        codec: spec of the codec that the payloads were encoded with.
        payloads: at most `MAX_DOWNLINK_PAYLOADS`; none where base and parent are the same.
    """

    base: str
    parent: str
    codec: str
    payloads: tuple[bytes, ...]


@dataclass(frozen=True)
class DeltaRequest:
    """A `WeightsRequest` whose weights the device reconstructs; its other fields are the same."""

    run_name: str
    round: int
    num_rounds: int
    layout: Layout
    downlink: Downlink
    hyper: Hyperparameters
    codec: str = "raw"
    control: Vector | None = None
    keep_parent: bool = False

    @property
    def parent(self) -> str:
        """Digest that the reconstructed weights must have."""
        return self.downlink.parent

    @property
    def key(self) -> RoundKey:
        """Key of the round: that of the same request with whole weights."""
        return RoundKey(self.run_name, self.round, self.parent, self.hyper.digest, self.codec)

    def with_weights(self, weights: Vector) -> WeightsRequest:
        """Return the request with the reconstructed weights in the downlink's place."""
        shared = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "downlink"
        }
        return WeightsRequest(weights=weights, **shared)


def encode_request(request: WeightsRequest, downlink: Downlink | None = None) -> RecordDict:
    """Return the content of a train or evaluate message.

    Args:
        request: what is asked.
        downlink: travels in place of the request's weights; it must lead to them.
    """
    config: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "run-name": request.run_name,
        "server-round": request.round,
        "num-rounds": request.num_rounds,
        "codec": request.codec,
        "keep-parent": request.keep_parent,
        **_encode_hyper(request.hyper),
    }
    content = RecordDict({CONFIG: ConfigRecord(config)})
    if downlink is None:
        content[ARRAYS] = to_array_record(request.layout, request.weights)
    else:
        content[DOWNLINK] = ConfigRecord(
            {
                "layout": request.layout.to_json(),
                "base": downlink.base,
                "parent": downlink.parent,
                "codec": downlink.codec,
                "payloads": list(downlink.payloads),
            }
        )
    if request.control is not None:
        content[CONTROL] = to_array_record(request.layout, request.control)
    return content


def decode_request(content: RecordDict) -> WeightsRequest | DeltaRequest:
    """Read a train or evaluate message on the device.

    Raises:
        ProtocolMismatch: the server speaks another version.
        TransportError: a field is missing or malformed.
    """
    config = record_named(content, CONFIG)
    check_protocol(config)
    shared: dict[str, Any] = {
        "run_name": get_field(config, "run-name", str),
        "round": get_field(config, "server-round", int),
        "num_rounds": get_field(config, "num-rounds", int),
        "codec": _codec_text(config),
        "keep_parent": get_field(config, "keep-parent", bool),
        "hyper": _decode_hyper(config),
    }
    try:
        if DOWNLINK in content.config_records:
            record = content.config_records[DOWNLINK]
            layout = Layout.from_json(get_field(record, "layout", str))
            control = _decode_control(content, layout)
            downlink = _decode_downlink(record)
            return DeltaRequest(layout=layout, downlink=downlink, control=control, **shared)
        arrays: ArrayRecord = content.array_records[ARRAYS]
        layout = layout_of_record(arrays)
        weights = from_array_record(layout, arrays)
        control = _decode_control(content, layout)
        return WeightsRequest(layout=layout, weights=weights, control=control, **shared)
    except KeyError as error:
        raise TransportError(f"the server's message has no record {error}") from error
    except (UpdateRejected, TaskError) as error:
        raise TransportError(f"the server's weights are malformed: {error}") from error


def _decode_control(content: RecordDict, layout: Layout) -> Vector | None:
    if CONTROL not in content.array_records:
        return None
    return from_array_record(layout, content.array_records[CONTROL])


def _decode_downlink(record: ConfigRecord) -> Downlink:
    payloads = get_field(record, "payloads", list)
    if len(payloads) > MAX_DOWNLINK_PAYLOADS:
        raise TransportError(
            f"a downlink has {len(payloads)} payloads, at most {MAX_DOWNLINK_PAYLOADS} are taken"
        )
    if not all(isinstance(payload, bytes) for payload in payloads):
        raise TransportError("a downlink's payloads should be bytes")
    return Downlink(
        _digest_text(record, "base"),
        _digest_text(record, "parent"),
        _codec_text(record),
        tuple(payloads),
    )


def _codec_text(record: ConfigRecord) -> str:
    codec: str = get_field(record, "codec", str)
    if not _CODEC_TEXT.fullmatch(codec):
        raise TransportError(f"field 'codec' is not the spec of a codec: {codec!r:.60}")
    return codec


def _digest_text(record: ConfigRecord, name: str) -> str:
    digest: str = get_field(record, name, str)
    if not _DIGEST_TEXT.fullmatch(digest):
        raise TransportError(f"field {name!r} should be a SHA-256 in hex, got {digest!r:.80}")
    return digest


def _encode_hyper(hyper: Hyperparameters) -> dict[str, Any]:
    """Return the fields of a message; a list that is empty does not travel."""
    values = {key.replace("_", "-"): value for key, value in asdict(hyper).items()}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value != ()
    }


def _decode_hyper(config: ConfigRecord) -> Hyperparameters:
    values = {}
    for field in fields(Hyperparameters):
        name, kind = field.name.replace("_", "-"), _FIELD_KINDS[str(field.type)]
        if kind is not list or name in config:
            values[field.name] = get_field(config, name, kind)
    try:
        return build(Hyperparameters, values)
    except ConfigError as error:
        text = f"the server's hyperparameters cannot be used: {error}"
        raise TransportError(text[:280]) from error
