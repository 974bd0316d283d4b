"""What rounds would come to under other deadlines and over-selections; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aggregation.codecs import make_codec
from fedge.errors import ConfigError
from fedge.messages import WeightsRequest
from fedge.rng import stream
from fedge.task import Task
from fedge.weights import build_checked_model, layout_of
from server.selection import draw_cohort
from simulation.devices.hashing import Ids
from simulation.devices.what_if import Alternative, what_if
from simulation.settings import SimulateConfig
from simulation.virtual_time import VirtualTime

NUM_ROUNDS = 24
_BETWEEN_S = 3600.0


def plan_rounds(
    config: SimulateConfig,
    task: Task,
    deadlines_s: Sequence[float],
    over_selections: Sequence[float],
) -> list[list[Alternative]]:
    """Return what comes of each choice in 24 rounds, one in every hour of the first day.

    Args:
        task: tells how large the model is and how many examples clients have.

    Raises:
        ConfigError: no time passes with these devices, or a choice cannot be made.
    """
    _check(config, deadlines_s, over_selections)
    times = VirtualTime(config, task, last_committed=0)
    rounds = config.server.rounds
    target = min(rounds.cohort_size or config.num_clients, config.num_clients)
    request = _request(config, task)
    found = []
    for round in range(1, NUM_ROUNDS + 1):
        asked = _ask(config, times, max(over_selections), round)
        schedule = times.ask(asked, replace(request, round=round))
        found.append(
            what_if(
                schedule,
                start_s=times.clock.monotonic(),
                target=target,
                deadlines_s=deadlines_s,
                over_selections=over_selections,
                loss_is_noticed=config.devices.loss_is_noticed,
            )
        )
        times.clock.sleep(_BETWEEN_S)
    return [list(rows) for rows in zip(*found, strict=True)]


def _check(
    config: SimulateConfig, deadlines_s: Sequence[float], over_selections: Sequence[float]
) -> None:
    if config.devices.preset == "none":
        raise ConfigError(
            'with "none" no time passes, and every deadline is the same: choose phones, '
            "gateways or lab",
            key="devices.preset",
        )
    for name, values, least in (
        ("--deadlines", deadlines_s, 0.0),
        ("--over-selections", over_selections, 1.0),
    ):
        wrong = [value for value in values if not least <= value < float("inf")]
        if wrong or not values:
            raise ConfigError(f"must be numbers of at least {least:g}, got {wrong}", key=name)


def _ask(config: SimulateConfig, times: VirtualTime, over_selection: float, round: int) -> Ids:
    """Draw who is asked, in random order, so that a smaller choice asks the first of them."""
    rounds = replace(config.server.rounds, over_selection=over_selection)
    seed = config.server.seed
    cohort = draw_cohort(rounds, range(config.num_clients), times.is_free, seed, round)
    clients = np.asarray(cohort.nodes, np.int64)
    return stream(seed, "what-if", round=round).permutation(clients)


def _request(config: SimulateConfig, task: Task) -> WeightsRequest:
    """Return a request as long as a real one."""
    layout = layout_of(build_checked_model(task))
    codec = config.server.aggregation.codec
    make_codec(codec, key="server.aggregation.codec")
    return WeightsRequest(
        run_name=config.server.run_name,
        round=1,
        num_rounds=NUM_ROUNDS,
        layout=layout,
        weights=np.zeros(layout.size, np.float32),
        hyper=config.server.train,
        codec=codec,
    )
