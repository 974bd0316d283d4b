"""Every client of a simulation that is asked by messages, honest or malicious."""

from __future__ import annotations

from collections import OrderedDict

from flwr.app import Context, Message, MessageType

from edge_client.client_app import TakesPart
from fedge.messages import decode_request
from fedge.task import Task
from simulation.attacks.collusion import Collusion, draw_members
from simulation.attacks.malicious import MaliciousClient
from simulation.attacks.methods import make_attacks
from simulation.clients import ClientData, SimulatedClient
from simulation.nodes import client_of
from simulation.settings import SimulateConfig
from simulation.state_store import StateStore

MAX_CLIENTS = 4096
"""Clients kept in memory, with their last reply and the model they hold; the others' state is on
disk, and one that is asked again after it was dropped gets whole weights."""


class Population:
    """Looks clients up by their number; each is made when it is first asked.

    Args:
        config: of the simulation.
        task: what is learnt.
        store: where what clients carry on is kept.

    Raises:
        ConfigError: there is no attack of the configured name.
    """

    def __init__(self, config: SimulateConfig, task: Task, store: StateStore) -> None:
        self._config = config
        self._task = task
        self._store = store
        self._data = ClientData(config, task)
        self._forger = make_attacks(config.attack).update
        self._malicious = draw_members(config)
        self._collusion = Collusion(self._malicious, self._trainee)
        self._trainees: OrderedDict[int, SimulatedClient] = OrderedDict()

    def participant_for(self, context: Context) -> TakesPart:
        """Return the client that a context names."""
        client = int(context.node_config["partition-id"])
        trainee = self._trainee(client)
        if self._forger is None or client not in self._malicious:
            return trainee
        seed = self._config.server.seed
        return MaliciousClient(client, trainee, self._forger, self._collusion, seed=seed)

    def overhear(self, message: Message) -> None:
        """Let the malicious clients know who is asked."""
        self._collusion.overhear(message)

    def charge(self, message: Message) -> None:
        """Let a client spend what a round costs that it was asked for and never answers."""
        if self._config.privacy.enabled and message.metadata.message_type == MessageType.TRAIN:
            client = client_of(message.metadata.dst_node_id)
            self._trainee(client).charge(decode_request(message.content))

    def _trainee(self, client: int) -> SimulatedClient:
        """Return who trains: a client, or what a malicious one makes its forgery of."""
        if client not in self._trainees:
            self._trainees[client] = SimulatedClient(
                self._config, self._task, client, data=self._data, store=self._store
            )
            if len(self._trainees) > MAX_CLIENTS:
                self._trainees.popitem(last=False)
        self._trainees.move_to_end(client)
        return self._trainees[client]
