"""The messages of one round: the same request for every node, the weights as each can take them."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedge.message_fields import ARRAYS, CONFIG, CONTROL, DOWNLINK
from fedge.messages import WeightsRequest, encode_request
from fedge.requests import Downlink
from server.selection import Cohort


class RoundMessages:
    """Makes one message a node; large records are shared, the rest is each message's own.

    Args:
        request: what is asked.
        extra: entries of the caller's that travel beside fedge's own.
        downlink: tells how a node gets from what it holds to the request's weights.
    """

    def __init__(
        self,
        request: WeightsRequest,
        extra: ConfigRecord | None = None,
        downlink: Callable[[int], Downlink | None] = lambda _: None,
    ) -> None:
        content = encode_request(request)
        self.arrays: ArrayRecord = content.array_records[ARRAYS]
        self.config = ConfigRecord({**(extra or {}), **content.config_records[CONFIG]})
        self._request = request
        self._control = content.array_records.get(CONTROL)
        self._downlink = downlink

    def to_cohort(
        self,
        cohort: Cohort,
        message_type: str,
        arrays: ArrayRecord,
        config: ConfigRecord,
        ttl: float,
    ) -> list[Message]:
        """Return one message for each node of a cohort.

        Args:
            arrays: weights for the nodes that get them whole.
            config: entries of every message.
            ttl: seconds until a message expires.
        """
        return [
            self._message(node, message_type, self._content(node, arrays, config), ttl)
            for node in cohort.nodes
        ]

    def whole(self, node: int, message_type: str, ttl: float) -> Message:
        """Return a message with whole weights, for a node that could not use a delta."""
        content = self._filled({ARRAYS: self.arrays}, self.config)
        return self._message(node, message_type, content, ttl)

    def _content(self, node: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        downlink = self._downlink(node)
        if downlink is None:
            return self._filled({ARRAYS: arrays}, config)
        record = encode_request(self._request, downlink).config_records[DOWNLINK]
        return self._filled({DOWNLINK: record}, config)

    def _filled(
        self, weights: dict[str, ArrayRecord | ConfigRecord], config: ConfigRecord
    ) -> RecordDict:
        content = RecordDict({**weights, CONFIG: ConfigRecord(dict(config))})
        if self._control is not None:
            content[CONTROL] = self._control
        return content

    def _message(self, node: int, message_type: str, content: RecordDict, ttl: float) -> Message:
        group = str(self._request.round)
        return Message(content, node, message_type, ttl=ttl, group_id=group)
