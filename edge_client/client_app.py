"""The Flower ClientApp: the same handlers under the daemon and under Flower's own engine.

Under ``flwr run .`` there is no daemon: `app` trains in this process on the partition that
Flower names, and keeps ledger, last reply and what is remembered with it in ``Context.state``. A
participant is made for each message there and holds no earlier model. Predictions, the sample store
and model versions belong to the daemon and are off.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from edge_client.ledger import MemoryLedger
from edge_client.participant import Participant
from edge_client.replies import MemoryReplyStore
from edge_client.worker import InProcessWorker
from fedge.config import build
from fedge.errors import ConfigError, FedgeError, ProtocolMismatch
from fedge.messages import (
    DeltaRequest,
    EncodedUpdate,
    Evaluation,
    Refusal,
    WeightsRequest,
    decode_request,
    encode_evaluation,
    encode_refusal,
    encode_update,
)
from fedge.rng import stream
from fedge.settings import PrivacyConfig, TaskConfig
from fedge.task import Examples, Split, Task, load_task

STATE = "fedge"
HOLDOUT_FRACTION = 0.1

_log = logging.getLogger(__name__)


class TakesPart(Protocol):
    """Who answers for a client: a `Participant`, or what plays one in a simulation."""

    def train(self, request: WeightsRequest | DeltaRequest) -> EncodedUpdate | Refusal:
        """Answer a train request."""
        ...

    def evaluate(self, request: WeightsRequest | DeltaRequest) -> Evaluation | Refusal:
        """Answer an evaluate request."""
        ...


def make_client_app(participant_for: Callable[[Context], TakesPart]) -> ClientApp:
    """Return a ClientApp that answers train and evaluate messages of a fedge server.

    Args:
        participant_for: returns who takes part; called once a message.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Train on the weights of a message and answer with an encoded delta."""

        def answer() -> RecordDict:
            result = participant_for(context).train(decode_request(message.content))
            return encode_refusal(result) if isinstance(result, Refusal) else encode_update(result)

        return Message(_guarded(answer), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluate the weights of a message on the holdout."""

        def answer() -> RecordDict:
            result = participant_for(context).evaluate(decode_request(message.content))
            if isinstance(result, Evaluation):
                return encode_evaluation(result)
            return encode_refusal(result)

        return Message(_guarded(answer), reply_to=message)

    return app


def _guarded(answer: Callable[[], RecordDict]) -> RecordDict:
    """Turn a protocol mismatch into a refusal; let nothing but our own errors' text out."""
    try:
        return answer()
    except ProtocolMismatch as error:
        return encode_refusal(Refusal("protocol", str(error)))
    except FedgeError:
        raise
    except Exception as error:
        # Flower sends the text of what we raise to the server, and a foreign error's text may
        # hold sample values: it stays in this log, and only the type goes on.
        _log.exception("a request failed")
        raise FedgeError(f"{type(error).__name__} on the device; its log says more") from None


def flower_participant(context: Context) -> Participant:
    """Return a participant whose data and memory are those that Flower's engine names.

    Raises:
        ConfigError: the node has no ``partition-id`` and ``num-partitions``.
    """
    client = _node_value(context, "partition-id")
    num_clients = _node_value(context, "num-partitions")
    task = _configured_task(str(context.run_config.get("config", "")))
    record = context.state.config_records.setdefault(STATE, ConfigRecord())
    save_ledger = partial(record.__setitem__, "ledger")
    save_reply = partial(record.__setitem__, "reply")
    ledger = (
        MemoryLedger.from_json(str(record["ledger"]), save_ledger)
        if "ledger" in record
        else MemoryLedger(save=save_ledger)
    )
    reply = record.get("reply", b"")
    return Participant(
        InProcessWorker(task, lambda split: split_client_data(task, client, num_clients, split)),
        ledger,
        MemoryReplyStore(reply if isinstance(reply, bytes) else b"", save_reply),
        PrivacyConfig(),
    )


def split_client_data(
    task: Task,
    client: int,
    num_clients: int,
    split: Split,
    *,
    holdout_fraction: float = HOLDOUT_FRACTION,
) -> Examples:
    """Return a stable split of a client's examples: about this share is held out."""
    examples = task.client_data(client, num_clients)
    if holdout_fraction == 0 and split == "train":
        return examples
    draws = stream(0, "client-holdout", client=client).random(len(examples))
    held_out = draws < holdout_fraction
    return examples.subset(np.flatnonzero(held_out if split == "holdout" else ~held_out))


def _node_value(context: Context, key: str) -> int:
    value = context.node_config.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(
            f"must be a whole number, got {value!r}: run in Flower's simulation, start the "
            "SuperNode with --node-config 'partition-id=0 num-partitions=10', or use fedge-edge",
            key=f"node config {key}",
        )
    return value


@cache
def _configured_task(path: str) -> Task:
    """Return the task that the server's configuration names, or the default one."""
    if not path:
        config = TaskConfig()
    else:
        try:
            tree = tomllib.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {error}", key="config") from error
        config = build(TaskConfig, tree.get("task", {}), "task.")
    return load_task(config.name, **config.options)


app = make_client_app(flower_participant)
