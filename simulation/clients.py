"""The clients of a simulation: seeded by round, what they carry on kept in the run folder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_client.client_app import split_client_data
from edge_client.held_weights import HeldWeights
from edge_client.participant import Participant
from edge_client.worker import Ask, InProcessWorker, Proposal, Trained, propose_round
from fedge.errors import StoreError, TaskError
from fedge.messages import DeltaRequest, EncodedUpdate, Evaluation, Refusal, WeightsRequest
from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.rng import stream, stream_seed
from fedge.settings import Hyperparameters
from fedge.task import Examples, Split, Task
from simulation.attacks.collusion import draw_members
from simulation.attacks.methods import make_attacks
from simulation.client_state import ClientState
from simulation.settings import SimulateConfig
from simulation.state_store import StateStore

RAW = "raw"
_UNUSED = np.random.default_rng(0)
"""For a codec that draws nothing: to make a generator takes longer than to encode."""


class ClientData:
    """What each client has, malicious ones with poisoned training examples.

    Args:
        config: of the simulation.
        task: where the examples come from.

    Raises:
        ConfigError: there is no attack of the configured name.
    """

    def __init__(self, config: SimulateConfig, task: Task) -> None:
        self._config = config
        self._task = task
        self._poison = make_attacks(config.attack).data
        self._malicious = draw_members(config) if self._poison is not None else frozenset()

    def examples(self, client: int, split: Split) -> Examples:
        """Return one split of a client's examples."""
        config = self._config
        examples = split_client_data(
            self._task,
            client,
            config.num_clients,
            split,
            holdout_fraction=config.holdout_fraction,
        )
        if split == "train" and self._poison is not None and client in self._malicious:
            return self._poison.poison(examples)
        return examples


class SimulatedClient(Participant):
    """A participant whose draws depend on seed, round and client alone.

    What it carries on is written in each round, so that a resumed run goes on with the same.
    Rounds that were not committed are forgotten: done again with the same draws, they give the
    same update and cost nothing more.

    Args:
        config: of the simulation.
        task: what is learnt.
        client: which one, from 0.
        data: what it has.
        store: where what it carries on is kept.
    """

    def __init__(
        self,
        config: SimulateConfig,
        task: Task,
        client: int,
        *,
        data: ClientData,
        store: StateStore,
    ) -> None:
        self._round = 0
        self._client = client
        self._store = store
        self._state = ClientState(client, store.get([client]).get(client))
        worker = InProcessWorker(
            task,
            lambda split: data.examples(client, split),
            draws=lambda: training_draws(config, client, self._round),
        )
        super().__init__(
            worker,
            self._state.ledger,
            self._state,
            config.privacy,
            held=HeldWeights(),
            rng=lambda: codec_rng(config, client, self._round),
        )

    def train(self, request: WeightsRequest | DeltaRequest) -> EncodedUpdate | Refusal:
        """Answer a train request; what it cost is on disk before the answer is out."""
        self._round = request.round
        try:
            return super().train(request)
        finally:  # what was reserved stays reserved where training fails
            self._write(request.round)

    def charge(self, request: WeightsRequest | DeltaRequest) -> None:
        """Reserve what a round costs that this client begins and never answers."""
        self._round = request.round
        with self._lock:
            whole = self._complete(request)
            if isinstance(whole, Refusal):
                return
            try:
                self.begin(whole, request.key)
            except StoreError:
                raise
            except Exception:  # its data are broken: it fails before it reserves anything
                return
        self._write(request.round)

    def _write(self, round: int) -> None:
        """Put on disk what this client carries on."""
        stored = self._state.to_stored()
        if stored is not None:
            self._store.put(round, {self._client: stored})
            self._store.trim()


class CohortClient:
    """One client of a cohort: a participant whose training somebody else does.

    Args:
        config: of the simulation.
        client: which one, from 0.
        examples: its training split.
        state: what it carries on.
        request: what it is asked.
    """

    def __init__(
        self,
        config: SimulateConfig,
        client: int,
        examples: Examples,
        state: ClientState,
        request: WeightsRequest,
    ) -> None:
        round = request.round
        self.examples = examples
        self.state = state
        self._make_draws: Callable[[], Draws] = lambda: training_draws(config, client, round)
        draws_nothing = request.codec == RAW
        self.participant = Participant(
            _Planner(len(examples)),
            state.ledger,
            state,
            config.privacy,
            rng=lambda: _UNUSED if draws_nothing else codec_rng(config, client, round),
        )

    def draws(self) -> Draws:
        """Return the draws of this round's training."""
        return self._make_draws()


class _Planner:
    """A `Worker` that plans and leaves the training to a `CohortTrainer`."""

    def __init__(self, num_examples: int) -> None:
        self._num_examples = num_examples

    def propose(self, ask: Ask) -> Proposal:
        """Return what a round would do and cost."""
        return propose_round(ask, self._num_examples)

    def train(
        self,
        layout_digest: str,
        weights: Vector,
        hyper: Hyperparameters,
        plan: DpPlan | None,
        correction: Vector | None = None,
        *,
        round_id: str = "",
    ) -> Trained:
        """Refuse: a cohort is trained as a whole."""
        del layout_digest, weights, hyper, plan, correction, round_id
        raise TaskError("a client of a cohort is not trained by itself")

    def evaluate(self, layout_digest: str, weights: Vector) -> Evaluation | None:
        """Refuse: a cohort is evaluated as a whole."""
        del layout_digest, weights
        raise TaskError("a client of a cohort is not evaluated by itself")


def training_draws(config: SimulateConfig, client: int, round: int) -> Draws:
    """Return what decides a client's batches and noise in a round."""
    seed = stream_seed(config.server.seed, "client", round=round, client=client)
    return Draws.seeded(seed)


def codec_rng(config: SimulateConfig, client: int, round: int) -> np.random.Generator:
    """Return what decides the randomness of a client's encoding in a round."""
    return stream(config.server.seed, "codec", round=round, client=client)
