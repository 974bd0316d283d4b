import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_client.mqtt.counters import Counters
from edge_client.mqtt.outbox import Answer, Outbox
from edge_client.mqtt.sender import Sender
from edge_client.mqtt.settings import OutboxConfig
from fedge.errors import StoreError
from fedge.mqtt.connection import Verdict

DEADLINE_S = 30.0


class Broker:
    """One connection that remembers what was published."""

    def __init__(self, receive_maximum: int = 100, maximum_packet_size: int = 100_000) -> None:
        self.receive_maximum = receive_maximum
        self.maximum_packet_size = maximum_packet_size
        self.published: list[dict[str, Any]] = []

    def publish(self, topic: str, payload: bytes | str, *, retain: bool = False) -> int:
        assert topic == "predictions"
        self.published.append(json.loads(payload))
        return len(self.published)

    @property
    def sequences(self) -> list[int]:
        return [found["sequence"] for found in self.published]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A sender with an outbox; steps are made by hand."""

    def __init__(self, path: Path, **config: Any) -> None:
        chosen = OutboxConfig(**config)
        self.outbox = Outbox(path, chosen, clock=lambda: 0.0)
        self.counters = Counters()
        self.clock = Clock()
        self.sender = Sender(
            self.outbox, "predictions", 'a"b', chosen, self.counters, clock=self.clock
        )

    def put(self, *numbers: int) -> None:
        self.outbox.put_many([Answer("s", number, b'{"output":[1.5]}') for number in numbers])

    def step(self) -> None:
        self.sender._take_events(0.0)
        self.sender._delete_confirmed()
        self.sender._send_again()
        self.sender._send_new()

    @property
    def waiting(self) -> list[int]:
        return [row.sequence for row in self.outbox.head(0, 1000)]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def build(**config: Any) -> Bench:
        benches.append(Bench(tmp_path / f"{len(benches)}.db", **config))
        return benches[-1]

    yield build
    for bench in benches:
        bench.outbox.close()


def test_predictions_leave_in_order_and_stay_until_the_broker_has_them(
    make: Callable[..., Bench],
) -> None:
    bench, broker = make(), Broker()
    bench.put(1, 2, 3)
    bench.step()
    bench.sender.connected(broker)
    bench.step()
    assert broker.published[0] == {"device": 'a"b', "sequence": 1, "output": [1.5]}
    assert broker.sequences == [1, 2, 3]
    bench.sender.published(broker, 2, Verdict())
    bench.step()
    assert bench.waiting == [1, 3]
    assert broker.sequences == [1, 2, 3]


def test_a_consumers_word_deletes_where_it_must_and_the_brokers_does_not(
    make: Callable[..., Bench],
) -> None:
    bench, broker = make(acknowledge="consumer"), Broker()
    bench.put(1, 2)
    bench.sender.connected(broker)
    bench.step()
    for number in (1, 2):
        bench.sender.published(broker, number, Verdict())
    bench.step()
    assert bench.waiting == [1, 2]
    durable: list[list[int]] = []
    bench.sender.consumed([2, 99], lambda: durable.append(bench.waiting))
    bench.step()
    assert durable == [[1]]


def test_a_new_connection_gets_everything_again(make: Callable[..., Bench]) -> None:
    bench, broker, other = make(acknowledge="consumer"), Broker(), Broker()
    bench.put(1, 2)
    bench.sender.connected(broker)
    bench.step()
    bench.sender.published(broker, 1, Verdict())
    bench.sender.connected(None)
    bench.step()
    bench.put(3)
    bench.sender.connected(other)
    bench.step()
    assert other.sequences == [1, 2, 3]


def test_an_answer_of_an_old_connection_deletes_nothing(make: Callable[..., Bench]) -> None:
    bench, broker, other = make(), Broker(), Broker()
    bench.put(1)
    bench.sender.connected(broker)
    bench.step()
    bench.sender.connected(other)
    bench.step()
    bench.sender.published(broker, 1, Verdict())
    bench.step()
    assert bench.waiting == [1]


def test_what_the_broker_refuses_stays_and_is_said(make: Callable[..., Bench]) -> None:
    bench, broker = make(), Broker()
    bench.put(1)
    bench.sender.connected(broker)
    bench.step()
    bench.sender.published(broker, 1, Verdict("Not authorized"))
    bench.step()
    assert bench.waiting == [1]
    assert "Not authorized" in bench.sender.problem
    bench.clock.now += 31
    bench.step()
    bench.sender.published(broker, 2, Verdict())
    bench.step()
    assert bench.waiting == []
    assert bench.sender.problem == ""


def test_an_unacknowledged_prediction_is_sent_again_ever_more_rarely(
    make: Callable[..., Bench],
) -> None:
    bench, broker = make(acknowledge="consumer", resend_after_s=10.0), Broker()
    bench.put(1)
    bench.sender.connected(broker)
    sent_at: list[float] = []
    while bench.clock.now < 86400:
        bench.step()
        if len(broker.published) > len(sent_at):
            sent_at.append(bench.clock.now)
            bench.sender.published(broker, len(broker.published), Verdict())
            bench.step()
        bench.clock.now += 5
    assert sent_at[:5] == [0, 10, 30, 70, 150]
    assert len(sent_at) < 40  # a day without consumer does not fill the broker
    assert max(b - a for a, b in itertools.pairwise(sent_at)) <= 3600


def test_a_slow_consumer_gets_nothing_twice_and_a_lost_prediction_is_sent_again(
    make: Callable[..., Bench],
) -> None:
    bench, broker = make(acknowledge="consumer", resend_after_s=10.0), Broker()
    bench.sender.connected(broker)
    for number in range(20):
        bench.put(number)
        bench.step()
        bench.sender.published(broker, number + 1, Verdict())
        bench.clock.now += 1
    for sequence in (1, 2, 4, 5):  # each acknowledged long after it was sent; 3 was lost
        bench.clock.now += 9
        bench.sender.consumed([sequence], lambda: None)
        bench.step()
    assert broker.sequences == [*range(1, 21), 3]


def test_no_more_are_under_way_than_configured(make: Callable[..., Bench]) -> None:
    bench, broker = make(acknowledge="consumer", in_flight=4), Broker()
    bench.put(*range(10))
    bench.sender.connected(broker)
    bench.step()
    for number in range(1, 5):
        bench.sender.published(broker, number, Verdict())
    bench.step()
    assert broker.sequences == [1, 2, 3, 4]
    bench.sender.consumed([1, 3], lambda: None)
    bench.step()
    assert broker.sequences == [1, 2, 3, 4, 5, 6]


def test_no_more_are_under_way_than_the_broker_takes(make: Callable[..., Bench]) -> None:
    bench, broker = make(), Broker(receive_maximum=3)
    bench.put(*range(10))
    bench.sender.connected(broker)
    bench.step()
    assert broker.sequences == [1, 2]
    bench.sender.published(broker, 1, Verdict())
    bench.step()
    assert broker.sequences == [1, 2, 3]


def test_one_too_large_for_the_broker_does_not_block_the_others(
    make: Callable[..., Bench],
) -> None:
    bench, broker = make(), Broker(maximum_packet_size=2000)
    bench.outbox.put_many([Answer("s", 0, b'{"output":"' + b"x" * 3000 + b'"}')])
    bench.put(1)
    bench.sender.connected(broker)
    bench.step()
    assert broker.sequences == [2]
    assert bench.waiting == [2]
    assert bench.counters.snapshot()["predictions_too_large_total"] == 1


def test_predictions_that_nobody_hears_are_counted(make: Callable[..., Bench]) -> None:
    bench, broker = make(), Broker()
    bench.put(1)
    bench.sender.connected(broker)
    bench.step()
    bench.sender.published(broker, 1, Verdict(heard=False))
    bench.step()
    assert bench.counters.snapshot()["predictions_unheard_total"] == 1


def test_the_thread_survives_a_disk_that_fails_for_a_while(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, broker = make(), Broker()
    whole, broken = bench.outbox.head, threading.Event()
    broken.set()

    def head(after: int, limit: int) -> Any:
        if broken.is_set():
            raise StoreError("disk is full")
        return whole(after, limit)

    monkeypatch.setattr(bench.outbox, "head", head)
    bench.put(1)
    bench.sender.start()
    try:
        bench.sender.connected(broker)
        wait_until(lambda: bench.sender.problem == "disk is full")
        broken.clear()
        wait_until(lambda: broker.sequences == [1])
        wait_until(lambda: bench.sender.problem == "")
    finally:
        bench.sender.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
