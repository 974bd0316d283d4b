"""Virtual federations: what a candidate's rounds would come to, tried on the cloud's proxy data.

All candidates begin at the current global weights and see the same pseudo-clients with the same
draws, so that they differ in their hyperparameters alone. Nothing here has seen a device's data
but the global weights themselves, and neither the gate nor the test set is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aggregation.codecs import make_codec
from aggregation.contracts import ClientUpdate, Memory
from aggregation.norms import norm_of
from fedge.errors import AggregationError, TaskError, UpdateRejected
from fedge.params import Layout, Vector
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan, plan_round
from fedge.rng import stream, stream_seed
from fedge.settings import Hyperparameters, PrivacyConfig
from fedge.task import CloudData, Examples, Task
from fedge.training.cohort import CohortTrainer
from fedge.training.cohort_contracts import CohortMember, CohortSettings
from fedge.training.evaluate import Values as Losses
from fedge.training.local import LocalResult, LocalTrainer
from server.central_privacy import noise_by_round
from server.checkpoint import Checkpoint
from server.model_update import ModelUpdate
from server.settings import ServerConfig
from server.tuner.pseudo_clients import draw_clients, proxy_parts
from server.tuner.settings import TunerConfig

AGGREGATOR = "weighted-mean"
"""Pseudo-clients are honest and few: robust rules would only hide them."""


@dataclass(eq=False)
class Trial:
    """One candidate's virtual federation.

    Attributes:
        config: of the server with the candidate's values.
        state: where its virtual rounds have led; None once it diverged.
        memories: error feedback of each pseudo-client's codec.
        path: weights after each virtual round.
        failure: why it is out.
    """

    config: ServerConfig
    state: Checkpoint | None
    update: ModelUpdate
    memories: dict[int, Memory] = field(default_factory=dict)
    path: list[Vector] = field(default_factory=list)
    failure: str = ""


class VirtualFederation:
    """Pseudo-clients of one search.

    Args:
        task: what is learnt.
        config: of the server; its run folder keeps what was measured of the backends that train
            cohorts.
        data: the cloud's; only the proxy set is used.
        seed: of the run.

    Raises:
        ConfigError: there are too few proxy examples.

    Attributes:
        passes: examples that went through the model since it was made, trained on or scored.
    """

    def __init__(self, task: Task, config: ServerConfig, data: CloudData, seed: int) -> None:
        self.passes = 0
        self._config = config.tuner
        self._seed = stream_seed(seed, "tuner", client=config.tuner.seed)
        self._fit, self._held = proxy_parts(data.proxy, config)
        self._trainer = CohortTrainer(task, CohortSettings(cache=config.run_dir / "tuner"))
        self._scorer = LocalTrainer(task)
        self._layout: Layout = self._scorer.layout
        self._clients: list[Examples] = []
        self._round = 0
        self._draw = self._number = 0
        self._trained: dict[tuple[str, str], list[Vector]] = {}

    def open(
        self, state: Checkpoint, configs: Sequence[ServerConfig], draw: int = 0
    ) -> list[Trial]:
        """Draw the pseudo-clients of the round after a state, and begin each candidate there.

        Args:
            state: where all begin.
            configs: of the candidates.
            draw: which series of central noise they get; all else is the same under any.
        """
        self._round, self._draw = state.round + 1, draw
        rng = stream(self._seed, "clients", round=self._round)
        # A client that had nearly all of the data would be like every other.
        size = min(self._config.client_examples, max(1, len(self._fit) // 2))
        self._clients = draw_clients(self._fit, self._config.clients, size, self._config.alpha, rng)
        return [self._begin(config, state) for config in configs]

    def advance(self, trials: Sequence[Trial], number: int) -> None:
        """Take each candidate through one virtual round; one that diverges is out."""
        # Candidates that differ in what the server does alone train from the same weights.
        self._trained = {}
        self._number = number
        for trial in trials:
            if trial.state is not None:
                try:
                    trial.state = self._advance(trial, trial.state, number)
                    trial.path.append(trial.state.weights)
                except (TaskError, AggregationError, UpdateRejected) as error:
                    trial.state, trial.failure = None, str(error)

    def losses(self, weights: Vector) -> Losses:
        """Return the loss of each held-out proxy example, ``[N]``."""
        self.passes += len(self._held)
        return self._scorer.losses(weights, self._held)

    def _begin(self, config: ServerConfig, state: Checkpoint) -> Trial:
        train = config.train
        if train.client_term == "scaffold":  # its controls are the real clients'
            train = replace(train, client_term="none")
        virtual = replace(config, train=train)
        if config.central_privacy.enabled:
            virtual = self._as_noisy(virtual)
        else:
            chosen = replace(config.aggregation, aggregator=AGGREGATOR)
            virtual = replace(virtual, aggregation=chosen)
        return Trial(virtual, state, ModelUpdate(virtual, self._layout, self._noise))

    def _advance(self, trial: Trial, state: Checkpoint, number: int) -> Checkpoint:
        deltas = self._deltas(trial, state, number)
        round = self._stands_for(number, trial.config.rounds.num_rounds)
        with trial.update.open_aggregate(round, {}, len(deltas)) as aggregate:
            for client, delta in enumerate(deltas):
                sent = self._sent(trial, client, delta, number)
                weight = float(len(self._clients[client]))
                aggregate.add(ClientUpdate(client, sent, weight, norm_of(sent)))
            return trial.update.apply(state, aggregate)

    def _deltas(self, trial: Trial, state: Checkpoint, number: int) -> list[Vector]:
        """Return what the pseudo-clients learn from a state.

        Raises:
            TaskError: training diverged on one of them.
        """
        key = (trial.config.train.digest, state.digest)
        if key not in self._trained:
            hyper = trial.config.train
            members = [
                CohortMember(examples, self._draws(number, client), self._plan(hyper, examples))
                for client, examples in enumerate(self._clients)
            ]
            self.passes += hyper.local_epochs * sum(map(len, self._clients))
            outcomes = self._trainer.train(state.weights, members, hyper)
            for outcome in outcomes:
                if not isinstance(outcome, LocalResult):
                    raise outcome
            self._trained[key] = [each.delta for each in outcomes if isinstance(each, LocalResult)]
        return self._trained[key]

    def _plan(self, hyper: Hyperparameters, examples: Examples) -> DpPlan | None:
        noise = self._config.noise_multiplier
        if noise == 0:
            return None
        return plan_round(PrivacyConfig(), hyper, len(examples), noise_multiplier=noise)

    def _sent(self, trial: Trial, client: int, delta: Vector, number: int) -> Vector:
        """Return an update as the server would decode it."""
        name = trial.config.aggregation.codec
        if name == "raw":
            return delta
        codec = make_codec(name)
        memory = trial.memories.get(client, codec.init(self._layout))
        rng = stream(self._seed, f"codec-{number}", round=self._round, client=client)
        encoded, trial.memories[client] = codec.encode(delta, memory, rng)
        return codec.decode(encoded.payload, self._layout)

    def _as_noisy(self, config: ServerConfig) -> ServerConfig:
        """Return a configuration whose virtual rounds have the noise of a real cohort's mean.

        However the noise is split, a virtual round costs as much on average as a real one to come.
        """
        rounds, noise = config.rounds, noise_by_round(config)
        virtual = [
            noise[self._stands_for(number, rounds.num_rounds) - 1]
            for number in range(1, self._config.virtual_rounds + 1)
        ]
        real = noise[min(self._round, rounds.num_rounds) - 1 :]
        scale = float(np.sqrt(np.mean(np.power(virtual, -2)) / np.mean(np.power(real, -2))))
        central = config.central_privacy
        multiplier = central.noise_multiplier * scale * len(self._clients) / rounds.cohort_size
        return replace(
            config,
            central_privacy=replace(central, noise_multiplier=multiplier),
            rounds=replace(rounds, cohort_size=len(self._clients)),
            tuner=TunerConfig(),  # a space need not hold so small a cohort
        )

    def _stands_for(self, number: int, num_rounds: int) -> int:
        """Return the real round in the middle of those that a virtual one has the noise of."""
        left = num_rounds - self._round + 1
        later = int(left * (number - 0.5) / self._config.virtual_rounds)
        return min(self._round + max(0, later), num_rounds)

    def _noise(self, _round: int) -> Draws:
        """Return the central noise of a virtual round, the same for all candidates."""
        purpose = f"central-{self._draw}-{self._number}"
        return Draws.seeded(stream_seed(self._seed, purpose, round=self._round))

    def _draws(self, number: int, client: int) -> Draws:
        purpose = f"draws-{number}"
        return Draws.seeded(stream_seed(self._seed, purpose, round=self._round, client=client))
