"""From a round's admitted updates to the next global weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from aggregation.cohort import RoundAggregate
from aggregation.contracts import OptimizerOptions, RoundContext
from aggregation.gate import GateLimits, UpdateGate
from aggregation.methods import OPTIMIZERS
from fedge.errors import AggregationError
from fedge.params import Layout
from server.checkpoint import Checkpoint
from server.settings import AggregationConfig


class ModelUpdate:
    """Aggregator, server optimiser and gate as they are configured.

    Their state travels in the checkpoint under the method's name: with another method after a
    resume it begins anew.

    Args:
        config: which methods, and their limits.
        layout: of the global model.
        spill_dir: where a buffered aggregator keeps a round's updates.

    Raises:
        ConfigError: there is no method of that name.
    """

    def __init__(self, config: AggregationConfig, layout: Layout, spill_dir: Path) -> None:
        self._config = config
        self._layout = layout
        self._spill_dir = spill_dir
        options = OptimizerOptions(config.learning_rate, config.momentum)
        self._optimizer = OPTIMIZERS[config.server_optimizer](options)
        self.gate = UpdateGate(layout, GateLimits(config.max_norm, config.max_examples))
        self.open_aggregate(0, {}).close()  # an unknown name is refused now, not in round 1

    def open_aggregate(self, round: int, memory: dict[str, object]) -> RoundAggregate:
        """Return an empty aggregate for a round; the caller closes it."""
        name = self._config.aggregator
        own = memory.get(name, {})
        context = RoundContext(round, memory=own if isinstance(own, dict) else {})
        return RoundAggregate(name, self._layout, context, self._spill_dir)

    def apply(self, state: Checkpoint, aggregate: RoundAggregate) -> Checkpoint:
        """Return the state with next weights, optimiser state and memory.

        Raises:
            AggregationError: there is no aggregate, or the next weights are not finite.
        """
        delta, memory = aggregate.finish()
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
            memory={self._config.aggregator: memory},
        )
