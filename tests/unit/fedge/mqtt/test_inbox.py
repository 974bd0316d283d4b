import threading

from fedge.mqtt.inbox import OVERHEAD_BYTES, Inbox
from fedge.mqtt.messages import Incoming


def message(payload: bytes, qos: int = 1) -> Incoming:
    return Incoming("t", payload, qos=qos)


def payloads(messages: list[Incoming]) -> list[bytes]:
    return [found.payload for found in messages]


def test_messages_leave_in_order_and_come_back_in_order() -> None:
    inbox = Inbox()
    assert all(inbox.offer(message(text)) for text in (b"a", b"b", b"c", b"d"))
    taken = inbox.take(3)
    assert payloads(taken) == [b"a", b"b", b"c"]
    inbox.put_back(taken[1:])
    assert payloads(inbox.take(9)) == [b"b", b"c", b"d"]


def test_number_and_bytes_are_bounded() -> None:
    few = Inbox(max_messages=1)
    assert few.offer(message(b"a"))
    assert not few.offer(message(b"b"))
    small = Inbox(max_bytes=OVERHEAD_BYTES + 10)
    assert not small.offer(message(b"x" * 11))
    assert small.offer(message(b"x" * 10))
    assert not small.offer(message(b""))
    small.take(1)
    assert small.offer(message(b"x" * 10))


def test_an_overflow_is_told_once_when_nothing_waits_any_more() -> None:
    inbox = Inbox(max_messages=1)
    inbox.offer(message(b"a"))
    inbox.offer(message(b"b"))
    assert not inbox.drained_after_overflow()
    inbox.take(1)
    assert inbox.drained_after_overflow()
    assert not inbox.drained_after_overflow()


def test_of_qos_0_and_of_a_connection_that_is_gone_nothing_comes_again() -> None:
    inbox = Inbox(max_messages=0)
    inbox.offer(message(b"a", qos=0))
    assert not inbox.drained_after_overflow()
    inbox.offer(message(b"a"))
    inbox.clear()
    assert not inbox.drained_after_overflow()


def test_a_closed_inbox_lets_nobody_wait() -> None:
    inbox = Inbox()
    taken: list[list[Incoming]] = []
    thread = threading.Thread(target=lambda: taken.append(inbox.take(1)))
    thread.start()
    inbox.close()
    thread.join(30)
    assert taken == [[]]


def test_gathering_ends_as_soon_as_there_are_enough() -> None:
    inbox = Inbox()
    taken: list[list[Incoming]] = []
    thread = threading.Thread(target=lambda: taken.append(inbox.take(3, gather_s=600)))
    thread.start()
    for payload in (b"a", b"b", b"c"):
        inbox.offer(message(payload))
    thread.join(60)
    assert [payloads(messages) for messages in taken] == [[b"a", b"b", b"c"]]
