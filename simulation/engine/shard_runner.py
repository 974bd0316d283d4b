"""Trains shards of clients: the whole of a round that happens on devices and at the gate.

Each client plans, reserves, encodes and is admitted by the code of the deployment; only the
training itself is done for many clients in one call.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregation.codecs import decode_payload
from aggregation.gate import UpdateGate
from aggregation.partial import ShardAggregate
from edge_client.participant import Begun
from edge_client.worker import Trained
from fedge.errors import FedgeError, TaskError, UpdateRejected
from fedge.messages import EncodedUpdate, Evaluation, Refusal, WeightsRequest
from fedge.task import Task
from fedge.training.cohort import CohortTrainer
from fedge.training.cohort_contracts import CohortMember, CohortSettings
from fedge.training.local import LocalResult, LocalTrainer
from server.cohorts import CohortRequest
from server.round_intake import CLIENT_ERROR, NO_BUDGET
from simulation.client_state import ClientState
from simulation.clients import RAW, ClientData, CohortClient
from simulation.engine.contracts import SHARD_SIZE, Run, ShardResult
from simulation.nodes import node_of
from simulation.settings import SimulateConfig

log = logging.getLogger(__name__)


def measurements_folder(run_dir: Path) -> Path:
    """Return where this machine's measurements of backends are kept, for every run alike.

    So two runs of one configuration train with the same backend, and give the same result. Where
    there is no such place that can be written (a container's home), each run keeps its own.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(cache).expanduser() / "fedge" / "backends"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter where nobody knows of a home
        return run_dir / "backends"
    return folder if os.access(folder, os.W_OK | os.X_OK) else run_dir / "backends"


@dataclass(frozen=True, eq=False)
class _Attempt:
    """One client on its way through a round."""

    client: CohortClient
    begun: Begun
    member: CohortMember


class ShardRunner:
    """Works in whichever process it is made in.

    Args:
        config: of the simulation.
        task: what is learnt.

    Raises:
        TaskError: the model cannot be trained.
    """

    def __init__(self, config: SimulateConfig, task: Task) -> None:
        self._config = config
        self._task = task
        self._data = ClientData(config, task)
        engine = config.engine
        settings = CohortSettings(
            backend=engine.backend,
            precision=engine.precision,
            device=engine.device,
            memory_mib=engine.memory_mib,
            cache=measurements_folder(config.server.run_dir),
        )
        self._trainer = CohortTrainer(task, settings)
        self._evaluator: LocalTrainer | None = None

    def train(self, request: CohortRequest, run: Run) -> list[ShardResult]:
        """Return what became of each shard of a run, in order."""
        gate = UpdateGate(request.request.layout, request.limits)
        gate.open_round(request.request.round, request.key.parent)
        attempts = [self._begin(request, client, run) for client in run.clients]
        trained = iter(self._train(request, [a for a in attempts if isinstance(a, _Attempt)]))
        results = []
        for start in range(0, len(attempts), SHARD_SIZE):
            shard = _Shard(request, gate)
            part = slice(start, start + SHARD_SIZE)
            for client, attempt in zip(run.clients[part], attempts[part], strict=True):
                if isinstance(attempt, _Attempt):
                    shard.take(client, attempt, next(trained))
                else:
                    shard.refuse(client, attempt)
            results.append(shard.result())
        return results

    def backend_name(self, request: CohortRequest) -> str:
        """Return what trains such requests here; empty before anything was trained."""
        hyper = request.request.hyper
        return self._trainer.backend_name(hyper, private=self._config.privacy.enabled)

    def evaluate(self, request: WeightsRequest, run: Run) -> list[Evaluation | Refusal]:
        """Return what each client measures on its holdout; under DP none does."""
        if self._config.privacy.enabled:
            reason = Refusal("private", "clients train under DP and keep their metrics home")
            return [reason for _ in run.clients]
        return [self._measure(request, client, run) for client in run.clients]

    def _begin(
        self, request: CohortRequest, client: int, run: Run
    ) -> _Attempt | Refusal | Exception:
        try:
            state = ClientState(client, run.states.get(client))
            examples = self._data.examples(client, "train")
            who = CohortClient(self._config, client, examples, state, request.request)
            begun = who.participant.begin(request.request, request.key)
            if isinstance(begun, Refusal):
                return begun
            plan, correction = begun.proposal.plan, begun.correction
            member = CohortMember(who.examples, who.draws(), plan, correction, begun.start)
            return _Attempt(who, begun, member)
        except TaskError as error:
            return Refusal("task", str(error))
        except Exception as error:  # isolates a client whose task fails in a way of its own
            return error

    def _train(
        self, request: CohortRequest, attempts: Sequence[_Attempt]
    ) -> Iterator[LocalResult | Exception]:
        members = [attempt.member for attempt in attempts]
        asked = request.request
        if members:
            yield from self._trainer.train(asked.weights, members, asked.hyper)

    def _measure(self, request: WeightsRequest, client: int, run: Run) -> Evaluation | Refusal:
        self._evaluator = self._evaluator or LocalTrainer(self._task)
        try:
            holdout = self._data.examples(client, "holdout")
            if len(holdout) < 1:
                return Refusal("no-data", "this client has no holdout examples")
            state = ClientState(client, run.states.get(client))
            who = CohortClient(self._config, client, holdout, state, request)
            weights = who.participant.own_weights(request)
            metrics = self._evaluator.evaluate(weights, holdout)
        except TaskError as error:
            return Refusal("task", str(error))
        except Exception as error:
            log.warning("client %d failed to evaluate", client, exc_info=True)
            return Refusal(CLIENT_ERROR, f"{type(error).__name__}: {error}")
        return Evaluation(float(len(holdout)), metrics)


class _Shard:
    """Adds up the updates of one shard and counts what does not count."""

    def __init__(self, request: CohortRequest, gate: UpdateGate) -> None:
        self._layout = request.request.layout
        self._allowed = {request.request.codec, RAW}
        self._gate = gate
        self._sum = ShardAggregate(
            request.aggregator, request.options, self._layout, request.context
        )
        self._result = ShardResult(self._sum.partial())

    def take(self, client: int, attempt: _Attempt, trained: LocalResult | Exception) -> None:
        """Encode, check and add what a client trained."""
        try:
            if isinstance(trained, Exception):
                self.refuse(client, trained)
            else:
                done = Trained(trained.delta, trained.num_steps, trained.seconds)
                self._admit(client, attempt.client.participant.finish(attempt.begun, done))
        except UpdateRejected as error:
            self._result.refused[error.reason] += 1
            log.debug("%s", error)
        except Exception as error:  # isolates a client whose data break what comes after training
            self.refuse(client, error)
        state = attempt.client.state.to_stored()
        if state is not None:
            self._result.states[client] = state

    def refuse(self, client: int, reason: Refusal | Exception) -> None:
        """Count a client that has no update."""
        if isinstance(reason, TaskError):
            reason = Refusal("task", str(reason))
        if isinstance(reason, Refusal):
            self._result.refused[reason.reason[:40]] += 1
            if reason.reason == NO_BUDGET:
                self._result.exhausted.append(client)
            log.debug("client %d declines (%s): %.200s", client, reason.reason, reason.detail)
            return
        self._result.refused[CLIENT_ERROR] += 1
        if self._result.failure is None:
            text = str(reason)
            if not isinstance(reason, FedgeError):
                text = "".join(traceback.format_exception(reason))
            self._result.failure = (client, text)

    def result(self) -> ShardResult:
        """Return the shard as it is to be merged."""
        self._result.partial = self._sum.partial()
        return self._result

    def _admit(self, client: int, update: EncodedUpdate) -> None:
        if update.epsilon is not None:
            self._result.epsilon[client] = update.epsilon
        admitted = self._gate.admit(
            node_of(client),
            decode_payload(update.codec, update.payload, self._layout, self._allowed),
            update.num_examples,
            round=update.round,
            parent=update.parent,
            layout_digest=update.layout_digest,
            num_steps=update.num_steps,
        )
        self._sum.add(admitted)
        self._result.num_bits += 8 * len(update.payload)
        self._result.distortion += update.distortion
