"""Every client of a simulation, honest or malicious, made when it is first asked and kept."""

from __future__ import annotations

from flwr.app import Context, Message

from edge_client.client_app import TakesPart
from fedge.task import Task
from server.checkpoint import CheckpointStore
from simulation.attacks.collusion import Collusion, draw_members
from simulation.attacks.malicious import MaliciousClient
from simulation.attacks.methods import make_attacks
from simulation.clients import SimulatedClient
from simulation.settings import SimulateConfig


class Population:
    """Looks clients up by their number.

    Raises:
        ConfigError: there is no attack of the configured name.
    """

    def __init__(self, config: SimulateConfig, task: Task) -> None:
        committed = CheckpointStore(config.server.run_dir / "checkpoints").latest()
        self._config = config
        self._task = task
        self._last_committed = 0 if committed is None else committed.round
        self._attacks = make_attacks(config.attack)
        self._malicious = draw_members(config)
        self._collusion = Collusion(self._malicious, self._trainee)
        self._trainees: dict[int, SimulatedClient] = {}

    def participant_for(self, context: Context) -> TakesPart:
        """Return the client that a context names."""
        client = int(context.node_config["partition-id"])
        trainee = self._trainee(client)
        forger = self._attacks.update
        if forger is None or client not in self._malicious:
            return trainee
        seed = self._config.server.seed
        return MaliciousClient(client, trainee, forger, self._collusion, seed=seed)

    def overhear(self, message: Message) -> None:
        """Let the malicious clients know who is asked."""
        self._collusion.overhear(message)

    def _trainee(self, client: int) -> SimulatedClient:
        """Return who trains: a client, or what a malicious one makes its forgery of."""
        if client not in self._trainees:
            poisoner = self._attacks.data if client in self._malicious else None
            self._trainees[client] = SimulatedClient(
                self._config,
                self._task,
                client,
                last_committed=self._last_committed,
                poison=None if poisoner is None else poisoner.poison,
            )
        return self._trainees[client]
