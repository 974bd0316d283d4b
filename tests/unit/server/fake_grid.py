"""A Flower grid in memory whose clients do what a test scripts, and a task of three parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn

from aggregation.codecs import RawCodec
from fedge.flower_internals import set_task_identity
from fedge.messages import (
    ARRAYS,
    METRICS,
    EncodedUpdate,
    Evaluation,
    WeightsRequest,
    decode_request,
    encode_evaluation,
    encode_update,
)
from fedge.params import Vector
from fedge.rng import stream
from fedge.task import CloudData, EdgeFiles, Examples, SampleStore, Split

Answer = RecordDict | Error | None


@dataclass(frozen=True)
class Asked:
    """A message as a scripted client sees it."""

    message: Message

    @property
    def node(self) -> int:
        return self.message.metadata.dst_node_id

    @property
    def request(self) -> WeightsRequest:
        request = decode_request(self.message.content)
        assert isinstance(request, WeightsRequest)
        return request

    @property
    def round(self) -> int:
        return decode_request(self.message.content).round

    @property
    def is_train(self) -> bool:
        return self.message.metadata.message_type == "train"


Client = Callable[[Asked], Answer]


def delta_of(node: int, round: int, size: int) -> Vector:
    """Return what an honest client learns: the same every time it is asked."""
    return stream(1, "delta", round=round, client=node).normal(size=size).astype(np.float32) * 0.1


def update_of(asked: Asked, delta: Vector | None = None, **fields: Any) -> RecordDict:
    """Return an honest update, or one with some fields replaced."""
    request = asked.request
    if delta is None:
        delta = delta_of(asked.node, request.round, request.layout.size)
    encoded, _ = RawCodec().encode(delta, {}, np.random.default_rng(0))
    values: dict[str, Any] = {
        "round": request.round,
        "parent": request.parent,
        "layout_digest": request.layout.digest,
        "codec": "raw",
        "payload": encoded.payload,
        "num_examples": float(10 + asked.node),
    }
    return encode_update(EncodedUpdate(**{**values, **fields}))


def honest(asked: Asked) -> RecordDict:
    """Answer train messages with an update and evaluate messages with metrics."""
    if not asked.is_train:
        return encode_evaluation(Evaluation(10.0, {"loss": 1.0, "accuracy": asked.node / 10}))
    return update_of(asked)


def full_weights(asked: Asked) -> RecordDict:
    """Answer as a stock Flower ClientApp does: whole weights and ``num-examples``."""
    request = asked.request
    weights = request.weights + delta_of(asked.node, request.round, request.layout.size)
    arrays = ArrayRecord(
        {name: Array(view) for name, view in request.layout.views(weights).items()}
    )
    return RecordDict({ARRAYS: arrays, METRICS: MetricRecord({"num-examples": 10 + asked.node})})


def silent(asked: Asked) -> None:
    """Never answer."""


@dataclass
class FakeGrid(Grid):
    """Delivers at once, and keeps a reply until it is pulled.

    Attributes:
        clients: what each connected node does.
        asked: every train message so far, as (round, node).
        faults: called before each operation with its name; may raise.
        hold: tells of a reply whether it is to be held back at this pull.
    """

    clients: dict[int, Client]
    asked: list[tuple[int, int]] = field(default_factory=list)
    faults: Callable[[str], None] = lambda _: None
    hold: Callable[[Asked], bool] = lambda _: False
    replies: dict[str, tuple[Asked, Message]] = field(default_factory=dict)
    pushed: int = 0

    def __post_init__(self) -> None:
        # Flower's Message wants to know in whose name it is made.
        set_task_identity(run_id=1, node_id=1)

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        self.faults("nodes")
        return list(self.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.faults("push")
        ids = []
        for message in messages:
            self.pushed += 1
            message.metadata.__dict__["_message_id"] = f"message-{self.pushed}"
            ids.append(message.metadata.message_id)
            asked = Asked(message)
            if asked.is_train:
                self.asked.append((asked.round, asked.node))
            answer = self.clients[asked.node](asked)
            if answer is not None:
                self.replies[ids[-1]] = (asked, Message(answer, reply_to=message))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.faults("pull")
        ready = [
            message_id
            for message_id in message_ids
            if message_id in self.replies and not self.hold(self.replies[message_id][0])
        ]
        return [self.replies.pop(message_id)[1] for message_id in ready]


class TinyTask:
    """A line through the plane; three parameters."""

    name = "tiny"
    input_shape = (2,)

    def build_model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square()

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"accuracy": ((outputs[:, 0] > 0) == (targets > 0)).double().mean().item()}

    def client_data(self, client: int, num_clients: int) -> Examples:
        return _examples(client)

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        return store.labelled(split)

    def cloud_data(self) -> CloudData:
        return CloudData(_examples(1001), _examples(1002), _examples(1003))

    def edge_files(self) -> EdgeFiles | None:
        return None


def _examples(seed: int) -> Examples:
    inputs = np.random.default_rng(seed).normal(size=(12, 2)).astype(np.float32)
    return Examples(inputs, inputs[:, 0] - inputs[:, 1])
