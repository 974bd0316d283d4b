import time
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from server import round_exchange
from server.round_exchange import Exchange
from tests.unit.server.fake_grid import Asked, FakeGrid


def accept(asked: Asked) -> RecordDict:
    return RecordDict({})


def ignore(asked: Asked) -> None:
    """Never answer."""


class PlainGrid(FakeGrid):
    """Does not read the messages as requests: these tests send empty ones."""

    def push_messages(self, messages: Any) -> Any:
        self.faults("push")
        ids = []
        for message in messages:
            self.pushed += 1
            message.metadata.__dict__["_message_id"] = f"message-{self.pushed}"
            ids.append(message.metadata.message_id)
            answer = self.clients[message.metadata.dst_node_id](Asked(message))
            if answer is not None:
                reply = Message(answer, reply_to=message)
                self.replies[ids[-1]] = (Asked(message), reply)
        return ids


def messages_to(nodes: Any, ttl: float = 100.0) -> list[Message]:
    return [Message(RecordDict({}), node, "train", ttl=ttl) for node in nodes]


def in_s(seconds: float) -> float:
    return time.monotonic() + seconds


def test_many_messages_go_and_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Counting(PlainGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            sizes.append(len(list(message_ids)))
            return super().pull_messages(message_ids)

    monkeypatch.setattr(round_exchange, "MESSAGES_PER_CALL", 8)
    nodes = range(1, 30)
    exchange = Exchange(Counting(dict.fromkeys(nodes, accept)), 0.001)
    assert exchange.send(messages_to(nodes), in_s(5)) == list(nodes)
    assert exchange.busy == set(nodes)
    got = [reply.metadata.src_node_id for reply in exchange.replies(in_s(5))]
    assert got == list(nodes)
    assert max(sizes) == 8
    assert exchange.busy == frozenset()


def test_replies_left_over_when_the_round_is_full_count_as_late() -> None:
    exchange = Exchange(PlainGrid(dict.fromkeys((1, 2, 3), accept)), 0.001)
    exchange.send(messages_to((1, 2, 3)), in_s(5))
    replies = exchange.replies(in_s(5))
    next(replies)
    replies.close()
    assert exchange.take_num_late() == 2
    assert exchange.take_num_late() == 0


def test_a_node_is_busy_until_its_message_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_exchange, "LATE_POLL_INTERVAL_S", 0.0)
    exchange = Exchange(PlainGrid({1: ignore, 2: accept}), 0.001)
    exchange.send(messages_to([1], ttl=0.1), in_s(5))
    assert list(exchange.replies(in_s(0.02))) == []
    exchange.send(messages_to([2]), in_s(5))  # closes the first batch
    assert exchange.busy == {1, 2}
    ends_at = in_s(5)
    while 1 in exchange.busy:
        exchange.collect_late()
        assert time.monotonic() < ends_at
    assert exchange.busy == {2}


def test_messages_that_the_superlink_does_not_take_are_counted() -> None:
    class Refusing(PlainGrid):
        def push_messages(self, messages: Any) -> Any:
            return [
                None if i == 1 else key for i, key in enumerate(super().push_messages(messages))
            ]

    exchange = Exchange(Refusing(dict.fromkeys((1, 2, 3), accept)), 0.001)
    assert exchange.send(messages_to((1, 2, 3)), in_s(5)) == [1, 3]
    assert exchange.refused == {"not-sent": 1}


def test_a_grid_that_leaves_out_what_it_does_not_take_is_understood() -> None:
    class Omitting(PlainGrid):
        def push_messages(self, messages: Any) -> Any:
            return list(super().push_messages(messages))[1:]

    exchange = Exchange(Omitting(dict.fromkeys((1, 2, 3), accept)), 0.001)
    assert exchange.send(messages_to((1, 2, 3)), in_s(5)) == [2, 3]


def test_a_failure_is_logged_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    failing = [True] * 5

    def faults(operation: str) -> None:
        if operation == "pull" and failing:
            failing.pop()
            raise OSError("reset by peer")

    caplog.set_level("INFO")
    exchange = Exchange(PlainGrid({1: accept}, faults=faults), 0.001)
    exchange.send(messages_to([1]), in_s(5))
    assert len(list(exchange.replies(in_s(5)))) == 1
    assert caplog.text.count("cannot be reached") == 1
    assert caplog.text.count("can be reached again") == 1


def test_replies_to_unknown_messages_are_ignored() -> None:
    other = Message(RecordDict({}), 1, "train")
    other.metadata.__dict__["_message_id"] = "somebody-elses"

    class Straying(PlainGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            return [Message(RecordDict({}), reply_to=other), *super().pull_messages(message_ids)]

    exchange = Exchange(Straying({1: accept}), 0.001)
    exchange.send(messages_to([1]), in_s(5))
    ids = [reply.metadata.reply_to_message_id for reply in exchange.replies(in_s(5))]
    assert ids == ["message-1"]
