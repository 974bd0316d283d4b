"""When the answers of simulated clients come, where each is asked by a message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
from flwr.app import Message, MessageType

from fedge.clock import Clock
from fedge.messages import decode_request
from simulation.devices.schedule import Outcome, Schedule
from simulation.devices.timeline import LATE
from simulation.nodes import FIRST_NODE_ID, client_of
from simulation.round_figures import RoundFigures
from simulation.virtual_time import VirtualTime, bytes_down


class Delivery(Protocol):
    """Who is there, and which answers have come."""

    def nodes(self) -> Sequence[int]:
        """Return the nodes that are connected."""
        ...

    def ask(self, messages: Mapping[str, Message]) -> Collection[str]:
        """Note messages by their ids, as they are sent; return those that will be answered."""
        ...

    def arrived(self, message_ids: Sequence[str]) -> list[str]:
        """Return those of these messages whose answers have come, in order of arrival."""
        ...


class AtOnce:
    """Everybody is there and answers without delay."""

    def __init__(self, num_clients: int) -> None:
        self._nodes = range(FIRST_NODE_ID, FIRST_NODE_ID + num_clients)

    def nodes(self) -> Sequence[int]:
        """Return every node."""
        return self._nodes

    def ask(self, messages: Mapping[str, Message]) -> Collection[str]:
        """Return all of them."""
        return list(messages)

    def arrived(self, message_ids: Sequence[str]) -> list[str]:
        """Return all of them as they are."""
        return list(message_ids)


class InVirtualTime:
    """Answers come when the client's device is done; what a device never sends never comes.

    Args:
        times: the devices and their time.
        num_clients: in the population.
        figures: told what the rounds cost.
    """

    def __init__(self, times: VirtualTime, num_clients: int, figures: RoundFigures) -> None:
        self._times = times
        self._all = np.arange(num_clients)
        self._figures = figures
        self._arrives_s: dict[str, float] = {}
        self._asked: list[Schedule] = []

    @property
    def clock(self) -> Clock:
        """Virtual time."""
        return self._times.clock

    def nodes(self) -> Sequence[int]:
        """Return the nodes that are there; who is still at work is the server's to know."""
        there = self._times.fleet.available(self._all, self._times.clock.monotonic())
        found: list[int] = (FIRST_NODE_ID + np.flatnonzero(there)).tolist()
        return found

    def ask(self, messages: Mapping[str, Message]) -> Collection[str]:
        """Work out which devices answer before their message expires; evaluations take no time."""
        now = self._times.clock.monotonic()
        training = {
            key: message
            for key, message in messages.items()
            if message.metadata.message_type == MessageType.TRAIN
        }
        arrives_s = {key: now for key in messages if key not in training}
        # Nodes that hold an earlier version are sent less than others, and are done sooner.
        alike: dict[int, dict[str, Message]] = {}
        requests = {key: decode_request(message.content) for key, message in training.items()}
        for key, request in requests.items():
            alike.setdefault(bytes_down(request), {})[key] = training[key]
        for group in alike.values():
            clients = [client_of(message.metadata.dst_node_id) for message in group.values()]
            request = requests[next(iter(group))]
            schedule = self._times.ask(np.asarray(clients, np.int64), request)
            arrives_s.update(zip(group, schedule.finish_s.tolist(), strict=True))
            self._asked.append(schedule)
        answered = {
            key: at_s for key, at_s in arrives_s.items() if at_s <= now + messages[key].metadata.ttl
        }
        self._arrives_s |= answered
        return answered

    def arrived(self, message_ids: Sequence[str]) -> list[str]:
        """Return whose answers have come by now, first come first."""
        now = self._times.clock.monotonic()
        there = [key for key in message_ids if self._arrives_s[key] <= now]
        there.sort(key=self._arrives_s.__getitem__)
        for key in there:
            del self._arrives_s[key]
        return there

    def close_round(self, seconds: float) -> None:
        """Tell the figures what the round's training cost, as it stands now.

        Args:
            seconds: real ones that the clients took.
        """
        now = self._times.clock.monotonic()
        outcomes: Counter[str] = Counter()
        for schedule in self._asked:
            for code, finish_s in zip(schedule.outcome, schedule.finish_s, strict=True):
                label = Outcome(int(code)).label
                outcomes[LATE if code == Outcome.OK and finish_s > now else label] += 1
        self._figures.note_training(
            num_clients=outcomes[Outcome.OK.label],
            seconds=seconds,
            outcomes=dict(outcomes),
            bytes_down=round(sum(float(s.bytes_down.sum()) for s in self._asked)),
            bytes_up=round(sum(float(s.bytes_up.sum()) for s in self._asked)),
        )
        self._asked.clear()
