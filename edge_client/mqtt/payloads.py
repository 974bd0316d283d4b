"""What devices are sent: samples and labels, read strictly.

A reader for samples is a class registered by the name of its format, and chosen by the message's
content type where it has one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_client.mqtt.json_values import read_array, read_object
from edge_client.mqtt.settings import SchemaConfig
from fedge.errors import PayloadRejected
from fedge.mqtt.messages import Incoming
from fedge.naming import Registry

MAX_SOURCE_BYTES = 128
MAX_SAMPLE_ID_BYTES = 256
MAX_SEQUENCE = 2**53 - 1  # whole numbers that every reader of JSON keeps exactly
CONTENT_TYPES = {"application/json": "json", "application/octet-stream": "packed"}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """One sample as a source sent it.

    Attributes:
        source: who numbers the samples.
        sequence: its number there.
        label: what it is, where the source knows already.
    """

    source: str
    sequence: int
    inputs: Array
    label: Array | None = None

    @property
    def sample_id(self) -> str:
        """The sample's name on this device."""
        return make_sample_id(self.source, self.sequence)


@dataclass(frozen=True)
class Label:
    """The label of a sample that came, or will."""

    sample_id: str
    target: Array


class SampleFormat(Protocol):
    """Reads one kind of payload."""

    def read(self, message: Incoming, schema: SchemaConfig) -> Sample:
        """Return the sample.

        Raises:
            PayloadRejected: it is not what was agreed on.
        """


FORMATS: Registry[type[SampleFormat]] = Registry("payload format")


@FORMATS.register("json")
class JsonFormat:
    """``{"source": …, "sequence": …, "input": …, "label": …}``, the label where it is known.

    Source and sequence, where they are missing, are taken from the user properties.
    """

    def read(self, message: Incoming, schema: SchemaConfig) -> Sample:
        """Return the sample."""
        found = read_object(message.payload)
        if "input" not in found:
            raise PayloadRejected("missing", "has no input")
        label = found.get("label")
        return Sample(
            *read_number(found, message.properties),
            read_array(found["input"], schema.shape, schema.dtype, "input"),
            None if label is None else _read_label(label, schema),
        )


@FORMATS.register("packed")
class PackedFormat:
    """Raw little-endian values of the declared shape; source and sequence are user properties."""

    def read(self, message: Incoming, schema: SchemaConfig) -> Sample:
        """Return the sample."""
        dtype = np.dtype(schema.dtype).newbyteorder("<")
        expected = math.prod(schema.shape) * dtype.itemsize
        if len(message.payload) != expected:
            raise PayloadRejected(
                "shape", f"must have {expected} bytes, got {len(message.payload)}"
            )
        flat: Array = np.frombuffer(message.payload, dtype).astype(schema.dtype)
        if not np.isfinite(flat).all():
            raise PayloadRejected("number", "has NaN or infinite values")
        return Sample(*read_number({}, message.properties), flat.reshape(schema.shape))


def read_sample(message: Incoming, schema: SchemaConfig) -> Sample:
    """Return the sample of a message.

    Raises:
        PayloadRejected: it is not what was agreed on.
    """
    check_size(message, schema)
    return FORMATS[format_name(message, schema)]().read(message, schema)


def read_label(message: Incoming, schema: SchemaConfig) -> Label:
    """Return the label of a message: JSON, with ``sample_id`` or source and sequence.

    Raises:
        PayloadRejected: it is not what was agreed on.
    """
    check_size(message, schema)
    found = read_object(message.payload)
    if "label" not in found:
        raise PayloadRejected("missing", "has no label")
    sample_id = found.get("sample_id")
    if sample_id is None:
        sample_id = make_sample_id(*read_number(found, message.properties))
    elif not _is_text(sample_id, MAX_SAMPLE_ID_BYTES):
        raise PayloadRejected("sample-id", f"sample_id must have 1 to {MAX_SAMPLE_ID_BYTES} bytes")
    return Label(sample_id, _read_label(found["label"], schema))


def read_number(found: Mapping[str, Any], properties: Mapping[str, str]) -> tuple[str, int]:
    """Return source and sequence, of the payload or else of the user properties.

    Raises:
        PayloadRejected: one of them is missing or out of range.
    """
    source = found.get("source", properties.get("source"))
    if not _is_text(source, MAX_SOURCE_BYTES):
        raise PayloadRejected("source", f"must name a source of 1 to {MAX_SOURCE_BYTES} bytes")
    sequence = found.get("sequence")
    if sequence is None:
        digits = properties.get("sequence", "")
        sequence = int(digits) if re.fullmatch("[0-9]{1,16}", digits) else None
    if type(sequence) is not int or not 0 <= sequence <= MAX_SEQUENCE:
        raise PayloadRejected("sequence", f"must have a sequence from 0 to {MAX_SEQUENCE}")
    return str(source), sequence


def format_name(message: Incoming, schema: SchemaConfig) -> str:
    """Return how a payload is to be read: as its content type says, else as the schema does.

    Raises:
        PayloadRejected: the content type is none that can be read.
    """
    name = schema.format
    if message.content_type:
        name = CONTENT_TYPES.get(message.content_type.partition(";")[0].strip().lower(), "")
    if not name:
        raise PayloadRejected("content-type", f"must be one of {', '.join(CONTENT_TYPES)}")
    return name


def check_size(message: Incoming, schema: SchemaConfig) -> None:
    """Refuse a payload that is too large to be read.

    Raises:
        PayloadRejected: says both sizes.
    """
    if len(message.payload) > schema.max_payload_bytes:
        raise PayloadRejected(
            "size", f"has {len(message.payload)} bytes, at most {schema.max_payload_bytes} are read"
        )


def make_sample_id(source: str, sequence: int) -> str:
    """Return the name of a sample on this device."""
    return f"{source}/{sequence}"


def _read_label(value: Any, schema: SchemaConfig) -> Array:
    return read_array(value, schema.label_shape, schema.label_dtype, "label")


def _is_text(value: object, max_bytes: int) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return 1 <= len(value.encode()) <= max_bytes and "\0" not in value
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        return False
