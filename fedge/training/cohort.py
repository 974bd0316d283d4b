"""Trains many clients in one call, each as `LocalTrainer` would train it alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch

# Backends register themselves when they are imported.
import fedge.training.fused.backend
import fedge.training.stacked.backend  # noqa: F401
from fedge.errors import TaskError, UpdateRejected
from fedge.params import Layout, Vector
from fedge.settings import Hyperparameters
from fedge.task import Task
from fedge.training.backend_choice import (
    Choice,
    choice_key,
    describe,
    measure,
    one_at_a_time,
    read_choice,
    write_choice,
)
from fedge.training.batch_plan import noise_bytes, plan_batches
from fedge.training.cohort_contracts import (
    BACKENDS,
    Backend,
    Batches,
    CohortMember,
    CohortSettings,
    Outcome,
)
from fedge.training.local import BROKEN_PARENT, LocalResult
from fedge.training.sequential import SequentialBackend
from fedge.training.sgd import trained_parameters
from fedge.weights import build_checked_model, layout_of

log = logging.getLogger(__name__)

_AUTO = "auto"
_NO_TERM = "none"
# Draws of more clients than a chunk holds only push the weights out of the caches.
_GROUP = 512
_GROUP_NOISE_BYTES = 48 << 20
_NUM_MEASURED = 8


class CohortTrainer:
    """Trains cohorts of a task's model; not for use by several threads at once.

    Args:
        task: what is learnt; each backend in use has a model of its own.

    Raises:
        TaskError: the model cannot be trained privately and averaged.
        ConfigError: no backend has the name in the settings.
    """

    def __init__(self, task: Task, settings: CohortSettings | None = None) -> None:
        self._task = task
        self._settings = settings or CohortSettings()
        self._model = build_checked_model(task)
        self.layout: Layout = layout_of(self._model)
        self._num_trained = sum(value.numel() for value in trained_parameters(self._model))
        self._sequential = SequentialBackend(task)
        self._backends: dict[str, Backend] = {SequentialBackend.name: self._sequential}
        self._chosen: dict[str, str] = {}
        self._said_so = False
        if self._settings.backend != _AUTO:
            self._backend(self._settings.backend)

    def backend_name(self, hyper: Hyperparameters, *, private: bool) -> str:
        """Return the backend that trains so; empty before the first members were seen."""
        return self._chosen.get(self._key(hyper, private), "")

    def train(
        self, parent: Vector, members: Sequence[CohortMember], hyper: Hyperparameters
    ) -> list[Outcome]:
        """Train every member from the parent weights.

        Returns:
            Results in the order of members; a TaskError for a member that cannot be trained, in
            the words of `LocalTrainer`, which harms no other.

        Raises:
            TaskError: the weights do not fit or are not finite, or the backend named in the
                settings cannot train this model so.
        """
        try:
            parent = self.layout.check(parent)
        except UpdateRejected as error:
            raise TaskError(f"the weights do not fit the task's model: {error}") from error
        if not np.isfinite(parent).all():
            raise TaskError(BROKEN_PARENT)
        outcomes: list[Outcome] = []
        for group in self._groups(members):
            outcomes += self._train_group(parent, group, hyper)
        return outcomes

    def _groups(self, members: Sequence[CohortMember]) -> Iterator[list[CohortMember]]:
        """Cut members so that the draws of a group fit into memory."""
        group: list[CohortMember] = []
        size_bytes = 0
        limit_bytes = min(_GROUP_NOISE_BYTES, self._noise_limit_bytes)
        for member in members:
            size_bytes += noise_bytes(member.plan, self._num_trained)
            if group and (len(group) == _GROUP or size_bytes > limit_bytes):
                yield group
                group, size_bytes = [], noise_bytes(member.plan, self._num_trained)
            group.append(member)
        if group:
            yield group

    @property
    def _noise_limit_bytes(self) -> int:
        return self._settings.memory_mib << 20

    def _train_group(
        self, parent: Vector, members: list[CohortMember], hyper: Hyperparameters
    ) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        in_time = []
        for position, member in enumerate(members):
            if hyper.client_term != _NO_TERM and (
                member.start is not None or hyper.personal_layers
            ):
                outcomes[position] = self._train_own(parent, member, hyper)
            elif noise_bytes(member.plan, self._num_trained) > self._noise_limit_bytes:
                # Trained alone, it draws the noise of a step when it takes the step.
                outcomes[position] = self._sequential.train_member(parent, member, hyper)
            else:
                in_time.append(position)
        batched = [members[at] for at in in_time]
        planned = plan_batches(batched, self.layout, hyper, self._num_trained)
        batches: dict[bool, dict[int, Batches]] = {False: {}, True: {}}
        for position, plan in zip(in_time, planned, strict=True):
            if isinstance(plan, TaskError):
                outcomes[position] = plan
            else:
                batches[plan.plan is not None][position] = plan
        for private, chosen in batches.items():
            if chosen:
                ready = list(chosen.values())
                backend = self._choose(parent, ready, hyper, private)
                found = self._train_or_split(backend, parent, ready, hyper)
                outcomes |= dict(zip(chosen, found, strict=True))
        return [outcomes[position] for position in range(len(members))]

    def _train_own(self, parent: Vector, member: CohortMember, hyper: Hyperparameters) -> Outcome:
        """Train a member with a client term that leaves some layers alone: no backend knows one."""
        if not self._said_so:
            self._said_so = True
            text = "clients with personal layers and train.client_term = %r are trained by %r"
            log.info(text, hyper.client_term, self._sequential.name)
        return self._sequential.train_member(parent, member, hyper)

    def _train_or_split(
        self, backend: Backend, parent: Vector, members: list[Batches], hyper: Hyperparameters
    ) -> list[Outcome]:
        """Train; where that raises, find the member at fault by halves and train it alone."""
        try:
            return backend.train(parent, members, hyper)
        except Exception as error:  # the task is the user's: one member's data may break it
            if len(members) == 1:
                text = "%s failed on a client, which is trained alone: %s"
                log.warning(text, backend.name, describe(error))
                return self._sequential.train(parent, members, hyper)
        half = len(members) // 2
        return [
            *self._train_or_split(backend, parent, members[:half], hyper),
            *self._train_or_split(backend, parent, members[half:], hyper),
        ]

    def _key(self, hyper: Hyperparameters, private: bool) -> str:
        return choice_key(self.layout.digest, hyper, private, self._settings)

    def _backend(self, name: str) -> Backend:
        if name not in self._backends:
            make = BACKENDS[name]
            with torch.random.fork_rng(devices=[]):  # a model draws weights that nobody uses
                model = build_checked_model(self._task)
                self._backends[name] = make(self._task, model, self.layout, self._settings)
        return self._backends[name]

    def _choose(
        self, parent: Vector, members: list[Batches], hyper: Hyperparameters, private: bool
    ) -> Backend:
        """Return the backend for such training, measured or checked on its first members."""
        key = self._key(hyper, private)
        if key not in self._chosen:
            name = self._settings.backend
            if name == _AUTO:
                name = self._measure(key, parent, members[:_NUM_MEASURED], hyper, private)
                if not name:
                    return self._sequential
            else:
                self._check(self._backend(name), parent, members[0], hyper, private)
            self._chosen[key] = name
        return self._backend(self._chosen[key])

    def _measure(
        self,
        key: str,
        parent: Vector,
        members: list[Batches],
        hyper: Hyperparameters,
        private: bool,
    ) -> str:
        """Return the fastest backend's name; empty where no member could be trained at all."""
        cache = self._settings.cache
        with one_at_a_time(cache, key):
            choice = read_choice(cache, key)
            if choice is None or choice.name not in BACKENDS:
                against = {
                    name: self._backend(name).reason_against(self._model, hyper, private)
                    for name in BACKENDS
                }
                able = {name: self._backend(name) for name, why in against.items() if not why}
                choice = measure(able, parent, members, hyper, self._settings.device)
                if choice is None:
                    return ""
                reasons = {name: why for name, why in against.items() if why}
                choice = Choice(choice.name, choice.rates, {**choice.reasons, **reasons})
                write_choice(cache, key, choice)
        log.info("cohort training: %s", choice)
        return choice.name

    def _check(
        self,
        backend: Backend,
        parent: Vector,
        member: Batches,
        hyper: Hyperparameters,
        private: bool,
    ) -> None:
        """Refuse a named backend that cannot train what training alone can.

        Raises:
            TaskError: says why.
        """
        reason = backend.reason_against(self._model, hyper, private)
        if not reason:
            try:
                backend.train(parent, [member], hyper)
            except Exception as error:
                alone = self._sequential.train(parent, [member], hyper)[0]
                # Otherwise the member itself is at fault, and the next call says so.
                reason = describe(error) if isinstance(alone, LocalResult) else ""
        if reason:
            raise TaskError(
                f"the cohort backend {backend.name!r} cannot train this: {reason}; "
                'choose "sequential", or "auto" to have one chosen'
            )
