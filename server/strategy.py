"""The rounds: a Flower strategy whose `start` runs them itself, by deadline and quorum.

Its hooks (`configure_train`, `aggregate_train`, ...) are those of every Flower strategy, and
`start` uses them; what differs is that replies are taken as they come, that a round ends at its
deadline whatever is missing, and that each round is committed before the next one begins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from aggregation.cohort import RoundAggregate
from fedge.clock import clock_of
from fedge.errors import AggregationError
from fedge.messages import WeightsRequest
from fedge.params import Vector
from fedge.records import from_array_record, to_array_record
from server.broadcast import Broadcast
from server.central_privacy import NoiseLog, charge, noise_of_round
from server.checkpoint import Checkpoint
from server.cohort_round import (
    await_cohort,
    cohort_request,
    evaluate_cohort,
    grid_metrics,
    largest_only,
    takes_cohorts,
)
from server.cohorts import CohortGrid, CohortReport
from server.device_voice import Ask, is_due
from server.evaluation import FederatedEvaluation
from server.events import EventLog
from server.model_update import ModelUpdate
from server.reference import Reference
from server.refine_step import Concluded, Refined, RefineStep
from server.round_commit import RoundCommit, TrainingReport
from server.round_exchange import Exchange
from server.round_intake import ClientErrors, RoundIntake
from server.round_messages import RoundMessages
from server.selection import Cohort, DeviceWatch, choose_cohort
from server.settings import ServerConfig
from server.strategy_result import add_to, describe
from server.tuner.tuner import Tuner

log = logging.getLogger(__name__)

TTL_IN_DEADLINES = 2.0
"""A node that dies with a message in hand is asked again after so many deadlines, not never."""


class HybridStrategy(Strategy):
    """Rounds of training on devices with refinement in the cloud between them.

    Args:
        config: of the server.
        state: the last committed checkpoint; the rounds go on after it.
        update: aggregator, gate and server optimiser.
        reference: the cloud's own update a round; None where the aggregator needs none.
        refine: refinement of the aggregate; None where it is off.
        commit: where rounds are committed.
        events: where the supervisor reads what happens.
        tuner: gives each round a configuration of its own; None where it is off.

    Attributes:
        state: the last committed checkpoint.
        stop_reason: why the rounds ended before the last one; empty if they did not.
    """

    def __init__(
        self,
        config: ServerConfig,
        state: Checkpoint,
        *,
        update: ModelUpdate,
        reference: Reference | None,
        refine: RefineStep | None,
        commit: RoundCommit,
        events: EventLog,
        tuner: Tuner | None = None,
    ) -> None:
        self.state = state
        self.stop_reason = ""
        self._config = config
        self._update = update
        self._reference = reference
        self._refine = refine
        self._commit = commit
        self._events = events
        self._tuner = tuner
        self._errors = ClientErrors(events)
        self._first_round = state.round + 1
        self._link: tuple[Grid, Exchange, DeviceWatch] | None = None
        self._broadcast = Broadcast(config.aggregation.downlink_codec, state.layout, state.seed)
        # What the hooks of the open round tell `start`, and each other.
        self._messages: RoundMessages | None = None
        self._ends_at = 0.0
        self._cohort = Cohort((), 0)
        self._next = state
        self._intake: RoundIntake | None = None
        self._evaluation = FederatedEvaluation(config.aggregation.max_examples)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds after `state` up to and including ``num_rounds``.

        Args:
            grid: the way to the nodes.
            initial_arrays: weights to begin with: those of `state`.
            num_rounds: number of the last round.
            timeout: seconds that bound every deadline of the configuration.
            train_config: entries to send with train messages besides fedge's own.
            evaluate_config: the same for evaluate messages.
            evaluate_fn: called after each round, beside the evaluation that is committed.

        Raises:
            DeadlineExceeded: not enough devices connected in time.
            CheckpointError: a round cannot be committed.
        """
        self.summary()
        layout = self.state.layout
        self.state = replace(self.state, weights=from_array_record(layout, initial_arrays))
        result = Result(arrays=initial_arrays)

        def ask(weights: Vector) -> dict[str, Any]:
            request = self._request(weights, num_rounds)
            return self._evaluate(grid, request, timeout, evaluate_config)

        while self.state.round < num_rounds:
            if self._tuner is not None:
                self._config, self._update = self._tuner.next_round(self.state)
            if takes_cohorts(grid, self._config):
                training = self._train_cohort(grid, num_rounds, timeout)
            else:
                training = self._train(grid, num_rounds, timeout, train_config)
            if training is None:
                self.stop_reason = "every device has spent its privacy budget"
                log.warning("no further rounds: %s", self.stop_reason)
                break
            aggregate = self._next.weights
            refined, evaluation = self._refined(training, ask)
            self._next = replace(self._next, weights=refined.weights)
            extra = {} if self._tuner is None else self._tuner.report
            training = replace(training, extra=extra | grid_metrics(grid, self._next.round))
            self.state = self._commit.commit(self._next, training, aggregate, refined, evaluation)
            result.arrays = to_array_record(layout, self.state.weights)
            add_to(result, self.state, training)
            if evaluate_fn is not None:
                evaluate_fn(self.state.round, result.arrays)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Wait for devices and return one train message for each of the cohort."""
        rounds = self._config.rounds
        exchange, watch = self._connect(grid)
        first = server_round == self._first_round
        free = watch.wait(rounds.min_devices if first else 1, self.state.exhausted)
        if first:
            self.state = self.state.known_only(set(exchange.connected()))
        self._cohort = choose_cohort(rounds, free, self.state.seed, server_round)
        return self._open().to_cohort(
            self._cohort, MessageType.TRAIN, arrays, config, self._train_ttl_s
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take replies until the cohort is full or there are no more, and apply them.

        Returns:
            None in place of arrays where too few updates came: the model stays as it is.
        """
        codec = self._config.aggregation.codec
        intake = RoundIntake(
            self.state.layout, self._broadcast, codec, server_round, self._update.gate, self._errors
        )
        self._intake = intake
        num_clients = 0 if self._link is None else self._link[2].num_connected
        with self._update.open_aggregate(server_round, self.state.memory, num_clients) as aggregate:
            for message in replies:
                intake.take(message, aggregate)
                self._send_whole(intake)
                if intake.num_fresh == self._cohort.target:
                    break
            self._next = replace(
                self.state,
                round=server_round,
                epsilon={**self.state.epsilon, **intake.epsilon},
                exhausted=self.state.exhausted | intake.exhausted,
            )
            applied = self._apply(intake, aggregate)
        self._next = replace(self._next, memory=self._broadcast.remember(self._next.memory))
        metrics = MetricRecord(
            {"num-accepted": intake.num_accepted, "num-refused": intake.refused.total()}
        )
        arrays = to_array_record(self._next.layout, self._next.weights) if applied else None
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one evaluate message for each of a cohort of those connected; waits for none."""
        _, watch = self._connect(grid)
        cohort = choose_cohort(self._config.rounds, watch.free(), self.state.seed, server_round)
        ttl = TTL_IN_DEADLINES * self._config.evaluate.deadline_s
        return self._open().to_cohort(cohort, MessageType.EVALUATE, arrays, config, ttl)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return weighted means over those who answer, and the worst tenth's accuracy."""
        self._evaluation = FederatedEvaluation(self._config.aggregation.max_examples)
        for message in replies:
            self._evaluation.take(message)
        metrics = self._evaluation.metrics()
        log.info("round %d: devices evaluate %s", server_round, metrics or "nothing")
        return MetricRecord(dict(metrics)) if metrics else None

    def summary(self) -> None:
        """Log what is going to happen."""
        log.info("%s", describe(self._config, self.state, refines=self._refine is not None))

    def _train(
        self, grid: Grid, num_rounds: int, timeout: float, extra: ConfigRecord | None
    ) -> TrainingReport | None:
        """Run the training part of a round; None where nobody is left to ask."""
        round = self.state.round + 1
        exchange, _ = self._connect(grid)
        opened = self._open_round(num_rounds, extra)
        messages = list(self.configure_train(round, opened.arrays, opened.config, grid))
        if not messages:
            return None
        began = TrainingReport()
        self._ends_at = clock_of(grid).monotonic() + min(timeout, self._config.rounds.deadline_s)
        asked = exchange.send(messages, self._ends_at)
        self._events.append("round-started", round=round, num_selected=len(asked))
        if self._reference is not None:
            self._reference.start(round, self._broadcast.weights)
        with closing(exchange.replies(self._ends_at)) as replies:
            updated, _ = self.aggregate_train(round, replies)
        intake = self._intake
        assert intake is not None
        return replace(
            began,
            num_selected=len(messages),
            num_accepted=intake.num_accepted,
            num_late=exchange.take_num_late(),
            num_stale=intake.num_stale,
            cost=intake.cost.summary(),
            refused=dict(intake.refused + exchange.refused),
            applied=updated is not None,
        )

    def _train_cohort(
        self, grid: CohortGrid, num_rounds: int, timeout: float
    ) -> TrainingReport | None:
        """Run the training part of a round in one request; None where nobody is left to ask."""
        state, rounds = self.state, self._config.rounds
        began, round = TrainingReport(), state.round + 1
        # The first of the run and not of this process: a resumed one draws the same cohorts.
        self._cohort = await_cohort(grid, rounds, state, first=round == 1)
        if not self._cohort.nodes:
            return None
        self._broadcast.advance(state.weights, state.memory, round)
        self._events.append("round-started", round=round, num_selected=len(self._cohort.nodes))
        if self._reference is not None:
            self._reference.start(round, self._broadcast.weights)
        request = self._request(self._broadcast.weights, num_rounds)
        deadline_s, size = min(timeout, rounds.deadline_s), len(grid.all_nodes())
        asked = cohort_request(self._update, request, self._cohort, deadline_s, state.memory, size)
        with self._update.open_aggregate(round, state.memory, size) as aggregate:
            report = grid.train_cohort(asked, aggregate.merge)
            if report.failure is not None:
                self._errors.show(*report.failure)
            self._next = replace(
                state,
                round=round,
                epsilon=largest_only({**state.epsilon, **report.epsilon}),
                exhausted=state.exhausted | report.exhausted,
            )
            applied = self._apply(report, aggregate)
        self._next = replace(self._next, memory=self._broadcast.remember(self._next.memory))
        return replace(report.training(began, len(self._cohort.nodes)), applied=applied)

    def _apply(self, intake: RoundIntake | CohortReport, aggregate: RoundAggregate) -> bool:
        """Make the open round's updates the next weights; tell whether they changed."""
        quorum = self._cohort.quorum(self._config.rounds.quorum)
        if intake.num_accepted < quorum:
            log.warning(
                "round %d: %d updates came and %d are needed; the model stays as it is "
                "(refused: %s)",
                self._next.round,
                intake.num_accepted,
                quorum,
                dict(intake.refused) or "none",
            )
            return False
        noise = noise_of_round(self._config, self._next.round)
        if self._config.central_privacy.enabled:
            NoiseLog(self._config.run_dir).note(self._next.round, noise)
        self._next = replace(self._next, memory=charge(self._next.memory, noise))
        reference = None if self._reference is None else self._reference.take()
        try:
            self._next = self._update.apply(self._next, aggregate, reference)
        except AggregationError as error:
            log.error("the model stays as it is: %s", error)
            return False
        return True

    def _refined(self, training: TrainingReport, ask: Ask) -> Concluded:
        """Refine what the round has changed; a round that changed nothing changes nothing."""
        refined, due = Refined(self._next.weights), is_due(self._config.evaluate, self._next.round)
        if self._refine is None:
            return refined, ask(refined.weights) if due else None
        if training.applied:
            refined = self._refine.apply(self._next.round, self._next.weights)
        return self._refine.conclude(self._next.round, self._next.weights, refined, ask, due)

    def _evaluate(
        self, grid: Grid, request: WeightsRequest, timeout: float, extra: ConfigRecord | None
    ) -> dict[str, Any]:
        """Let devices evaluate weights that may be committed."""
        if takes_cohorts(grid, self._config):
            return evaluate_cohort(grid, self._config, request, self.state)
        exchange, _ = self._connect(grid)
        opened = self._messages = RoundMessages(request, extra)
        ends_at = clock_of(grid).monotonic() + min(timeout, self._config.evaluate.deadline_s)
        messages = self.configure_evaluate(request.round, opened.arrays, opened.config, grid)
        asked = exchange.send(messages, ends_at)
        with closing(exchange.replies(ends_at)) as replies:
            self.aggregate_evaluate(request.round, replies)
        return self._evaluation.summary(len(asked))

    def _request(self, weights: Vector, num_rounds: int) -> WeightsRequest:
        """Return what is asked of the nodes in the round after the last committed one."""
        config = self._config
        return WeightsRequest(
            run_name=self.state.run_name,
            round=self.state.round + 1,
            num_rounds=num_rounds,
            layout=self.state.layout,
            weights=weights,
            hyper=config.train,
            codec=config.aggregation.codec,
            control=self._update.control(self.state.memory),
            keep_parent=self._broadcast.is_lossy,
        )

    def _open_round(self, num_rounds: int, extra: ConfigRecord | None = None) -> RoundMessages:
        """Fix what the devices of the next round train from, and what they are asked."""
        self._broadcast.advance(self.state.weights, self.state.memory, self.state.round + 1)
        request = self._request(self._broadcast.weights, num_rounds)
        self._messages = RoundMessages(request, extra, self._broadcast.downlink)
        return self._messages

    def _open(self) -> RoundMessages:
        """Return the open round's messages; opens a round where a hook is called by itself."""
        return self._messages or self._open_round(self.state.round + 1)

    def _send_whole(self, intake: RoundIntake) -> None:
        """Send whole weights to the nodes that could not use a delta, in the same round."""
        if not intake.lost_base or self._link is None:
            return
        nodes, intake.lost_base = intake.lost_base, []
        # A late refusal must not bring a node into a round that it was not drawn for.
        messages = [
            self._open().whole(node, MessageType.TRAIN, self._train_ttl_s)
            for node in nodes
            if node in self._cohort.nodes
        ]
        self._link[1].send_more(messages, self._ends_at)

    @property
    def _train_ttl_s(self) -> float:
        return TTL_IN_DEADLINES * self._config.rounds.deadline_s

    def _connect(self, grid: Grid) -> tuple[Exchange, DeviceWatch]:
        """Return what is outstanding on a grid, and who is connected to it."""
        if self._link is None or self._link[0] is not grid:
            rounds, keeps_late = self._config.rounds, self._config.aggregation.max_staleness > 0
            exchange = Exchange(grid, rounds.poll_interval_s, keeps_late=keeps_late)
            self._link = (grid, exchange, DeviceWatch(exchange, rounds, clock_of(grid)))
        return self._link[1], self._link[2]
