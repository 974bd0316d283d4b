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

logger = logging.getLogger(__name__)

SERVER_NODE_ID = 1
FIRST_NODE_ID = 1000
CLIENT_APP_ERROR = 2  # flwr's code for an exception in a ClientApp


class SimulationGrid(Grid):
    """Deliver each message to a ClientApp in this process, when its reply is pulled.

    Args:
        app: the ClientApp that every client runs.
        num_clients: clients connected; client ``i`` is node ``FIRST_NODE_ID + i``.
        reachable: tells whether a client answers in a round at all; None means always.
        on_push: told of each message that is queued, before any of its batch is answered.
    """

    def __init__(
        self,
        app: ClientApp,
        num_clients: int,
        *,
        run_id: int = 1,
        reachable: Callable[[int, str], bool] | None = None,
        on_push: Callable[[Message], None] | None = None,
    ) -> None:
        set_task_identity(run_id, SERVER_NODE_ID)
        self._app = app
        self._run_id = run_id
        self._num_clients = num_clients
        self._reachable = reachable or (lambda _client, _group: True)
        self._on_push = on_push or (lambda _message: None)
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
        """Return the node id of every client."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self._num_clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; returns their ids in order."""
        ids = []
        for message in messages:
            message_id = self._new_id()
            assign_message_id(message, message_id)
            self._pending[message_id] = message
            self._on_push(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the clients whose messages are asked for; returns their replies."""
        replies = []
        for message_id in message_ids:
            message = self._pending.pop(message_id, None)
            if message is None:
                continue
            client = message.metadata.dst_node_id - FIRST_NODE_ID
            if not self._reachable(client, message.metadata.group_id):
                continue
            reply = self._answer(client, message)
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
