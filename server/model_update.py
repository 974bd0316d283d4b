"""From a round's admitted updates to the next global weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from aggregation.cohort import RoundAggregate, needs_steps
from aggregation.contracts import AggregatorOptions, OptimizerOptions, RoundContext
from aggregation.gate import GateLimits, UpdateGate
from aggregation.methods import OPTIMIZERS
from aggregation.scaffold import CONTROL
from fedge.errors import AggregationError
from fedge.params import Layout, Vector
from fedge.personal import personal_part
from fedge.privacy.noise import Draws
from server.central_privacy import account_in, noise_of_round
from server.checkpoint import Checkpoint
from server.settings import ServerConfig


class ModelUpdate:
    """Aggregator, server optimiser and gate as they are configured.

    Their state travels in the checkpoint under the method's name: with another method after a
    resume it begins anew.

    Args:
        config: of the server: which methods, their limits, and how clients train.
        layout: of the global model.
        draws: where the noise of a round comes from; None is the operating system's entropy.

    Raises:
        ConfigError: there is no method of that name, or no parameter that a pattern of personal
            layers matches.
    """

    def __init__(
        self,
        config: ServerConfig,
        layout: Layout,
        draws: Callable[[int], Draws] | None = None,
    ) -> None:
        self._server = config
        self._config = config.aggregation
        self._draws = draws
        self._layout = layout
        self._spill_dir = config.run_dir / "spill"
        self._personal = personal_part(layout, config.train.personal_layers)
        self._optimizer = OPTIMIZERS[self._config.server_optimizer](_optimizer_options(config))
        self.aggregator = self._config.aggregator
        self.limits = _gate_limits(config)
        self.gate = UpdateGate(layout, self.limits)
        self.open_aggregate(0, {}, 1).close()  # an unknown name is refused now, not in round 1

    def open_aggregate(
        self, round: int, memory: dict[str, object], num_clients: int
    ) -> RoundAggregate:
        """Return an empty aggregate for a round; the caller closes it.

        Args:
            round: the open round.
            memory: of the last checkpoint.
            num_clients: devices there are, where the configuration does not say.
        """
        options, context = self.method(round, memory, num_clients)
        options = replace(options, draws=None if self._draws is None else self._draws(round))
        return RoundAggregate(self.aggregator, options, self._layout, context, self._spill_dir)

    def method(
        self, round: int, memory: dict[str, object], num_clients: int
    ) -> tuple[AggregatorOptions, RoundContext]:
        """Return what the aggregator is made with, but for its source of noise."""
        options = replace(
            _aggregator_options(self._server, round),
            num_clients=self._config.num_clients or num_clients,
        )
        return options, RoundContext(round, memory=self.memory_of(memory))

    def memory_of(self, memory: dict[str, Any]) -> dict[str, Any]:
        """Return what the aggregator itself remembers."""
        own = memory.get(self._config.aggregator, {})
        return own if isinstance(own, dict) else {}

    def control(self, memory: dict[str, Any]) -> Vector | None:
        """Return SCAFFOLD's server control, where clients are to be corrected by it."""
        if self._server.train.client_term != "scaffold":
            return None
        return self.memory_of(memory).get(CONTROL)

    def apply(
        self, state: Checkpoint, aggregate: RoundAggregate, reference: Vector | None = None
    ) -> Checkpoint:
        """Return the state with next weights, optimiser state and memory.

        Args:
            state: of the open round.
            aggregate: its updates.
            reference: the cloud's own update, where the aggregator needs it.

        Raises:
            AggregationError: there is no aggregate, or the next weights are not finite.
        """
        delta, memory = aggregate.finish(reference)
        if self._personal is not None:  # central noise is added to every parameter
            delta = self._personal.without(delta)
        name = self._config.server_optimizer
        before = state.optimizer_state.get(name)
        if before is None:
            before = self._optimizer.init(self._layout)
        # An overflow is what is looked for below.
        with np.errstate(over="ignore", invalid="ignore"):
            weights, after = self._optimizer.apply(state.weights, delta, before)
        if not np.isfinite(weights).all():
            raise AggregationError(
                f"round {state.round}: the next weights are not finite; lower "
                "aggregation.learning_rate or aggregation.momentum, or set aggregation.max_norm"
            )
        return replace(
            state,
            weights=weights,
            optimizer_state={name: after},
            memory={**account_in(state.memory), self._config.aggregator: memory},
        )


def _aggregator_options(config: ServerConfig, round: int) -> AggregatorOptions:
    chosen, train = config.aggregation, config.train
    return AggregatorOptions(
        malicious_fraction=chosen.malicious_fraction,
        norm_bound=chosen.norm_bound,
        bound_factor=chosen.bound_factor,
        learning_rate=train.learning_rate,
        momentum=train.momentum,
        clip_norm=config.central_privacy.clip_norm,
        noise_multiplier=noise_of_round(config, round),
        expected_cohort=max(1, config.rounds.cohort_size),
    )


def _gate_limits(config: ServerConfig) -> GateLimits:
    chosen, train = config.aggregation, config.train
    return GateLimits(
        max_norm=chosen.max_norm,
        max_examples=chosen.max_examples,
        max_staleness=chosen.max_staleness,
        max_epochs=train.local_epochs,
        batch_size=train.batch_size,
        needs_steps=needs_steps(chosen.aggregator),
        personal_layers=train.personal_layers,
    )


def _optimizer_options(config: ServerConfig) -> OptimizerOptions:
    chosen = config.aggregation
    return OptimizerOptions(
        learning_rate=chosen.learning_rate,
        momentum=chosen.momentum,
        beta_1=chosen.beta_1,
        beta_2=chosen.beta_2,
        tau=chosen.tau,
    )
