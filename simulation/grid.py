"""A Flower Grid whose clients live in this process: the deployment's server code runs on it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedge.flower_internals import assign_message_id, set_task_identity
from server.round_intake import CLIENT_APP_ERROR
from simulation.delivery import AtOnce, Delivery
from simulation.nodes import FIRST_NODE_ID, SERVER_NODE_ID, client_of

logger = logging.getLogger(__name__)


class SimulationGrid(Grid):
    """Deliver each message to a ClientApp in this process, when its reply is pulled.

    Args:
        app: the ClientApp that every client runs.
        num_clients: clients connected; client ``i`` is node ``FIRST_NODE_ID + i``.
        delivery: who is there, and when each answer comes; None lets all answer at once.
        on_push: told of each message that is queued, before any of its batch is answered.
        on_lost: told of each message that will never be answered.
    """

    def __init__(
        self,
        app: ClientApp,
        num_clients: int,
        *,
        run_id: int = 1,
        delivery: Delivery | None = None,
        on_push: Callable[[Message], None] | None = None,
        on_lost: Callable[[Message], None] | None = None,
    ) -> None:
        set_task_identity(run_id, SERVER_NODE_ID)
        self._app = app
        self._run_id = run_id
        self._num_clients = num_clients
        self._delivery = delivery or AtOnce(num_clients)
        self._on_push = on_push or _ignore
        self._on_lost = on_lost or _ignore
        self._contexts: dict[int, Context] = {}
        self._pending: dict[str, Message] = {}
        self._numbers = itertools.count()

    def set_run(self, run: Any) -> None:
        """Take the run's id from Flower's own record."""
        self._run_id = run.run_id

    @property
    def run(self) -> Any:
        """There is no Flower run behind a simulation."""
        raise AttributeError("a simulation has no Flower run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message; Flower's deprecated way of making one."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node id of every client that is there."""
        return self._delivery.nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; returns their ids in order."""
        asked: dict[str, Message] = {}
        for message in messages:
            message_id = self._new_id()
            assign_message_id(message, message_id)
            asked[message_id] = message
            self._on_push(message)
        # Nobody asks for the others again, and each holds the weights of its round.
        self._pending.update((key, asked[key]) for key in self._delivery.ask(asked))
        for key, message in asked.items():
            if key not in self._pending:
                self._on_lost(message)
        return list(asked)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the clients whose messages are asked for; returns their replies."""
        replies = []
        for message_id in self._delivery.arrived([i for i in message_ids if i in self._pending]):
            message = self._pending.pop(message_id)
            reply = self._answer(client_of(message.metadata.dst_node_id), message)
            assign_message_id(reply, self._new_id())
            replies.append(reply)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Queue messages and run their clients at once; no virtual time passes."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _new_id(self) -> str:
        return f"{self._run_id}-{next(self._numbers)}"

    def _answer(self, client: int, message: Message) -> Message:
        try:
            return self._app(message, self._context(client))
        # Boundary: like a SuperNode, whatever the ClientApp raises becomes an error reply.
        except Exception as error:
            logger.warning("client %d failed", client, exc_info=True)
            text = f"{type(error).__name__}: {error}"
            return Message(Error(code=CLIENT_APP_ERROR, reason=text), reply_to=message)

    def _context(self, client: int) -> Context:
        if client not in self._contexts:
            self._contexts[client] = Context(
                run_id=self._run_id,
                node_id=FIRST_NODE_ID + client,
                node_config={"partition-id": client, "num-partitions": self._num_clients},
                state=RecordDict(),
                run_config={},
            )
        return self._contexts[client]


def _ignore(message: Message) -> None:
    del message
