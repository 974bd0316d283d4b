import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from edge_client.node_identity import SessionFile
from edge_client.pending_message import PENDING_FILE, PendingMessage
from edge_client.supernode import MAX_PUSHES, NodeLoop
from fedge.errors import TaskError, TransportError
from fedge.flower_internals import NodeConnection, set_task_identity
from fedge.superlink_errors import Refused, RunNotRunning


def instruction(text: str = "hello") -> Message:
    set_task_identity(run_id=5, node_id=1)
    message = Message(RecordDict({"config": ConfigRecord({"text": text})}), 42, "train")
    message.metadata.__dict__["_message_id"] = text
    return message


class FakeSuperLink:
    """Hands out messages and keeps replies; tests break it at will."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.replies: list[Message] = []
        self.known: list[int | None] = []
        self.open_errors: list[Exception] = []
        self.pull_errors: list[Exception] = []
        self.push_errors: list[Exception] = []
        self.num_opened = 0
        self.num_pushes = 0
        self.node_id = 42
        self.closes_cleanly = True

    def connect(self, known_node_id: int | None) -> NodeConnection:
        self.known.append(known_node_id)
        return cast(NodeConnection, self)

    def open(self) -> int:
        if self.open_errors:
            raise self.open_errors.pop(0)
        self.num_opened += 1
        return self.node_id

    def pull(self) -> Message | None:
        if self.pull_errors:
            raise self.pull_errors.pop(0)
        return self.messages.pop(0) if self.messages else None

    def push(self, reply: Message, seconds: float) -> None:
        self.num_pushes += 1
        if self.push_errors:
            raise self.push_errors.pop(0)
        self.replies.append(reply)

    def close(self) -> bool:
        return self.closes_cleanly


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        text = str(message.content.config_records["config"]["text"])
        if text == "task":
            raise TaskError("no\nlabels")
        if text == "bug":
            raise ValueError("sample 0.123 is odd")
        return Message(message.content, reply_to=message)

    return app


@contextmanager
def running(link: FakeSuperLink, folder: Path) -> Iterator[NodeLoop]:
    loop = NodeLoop(
        link.connect,
        echo_app(),
        poll_interval_s=0.001,
        reconnect_max_s=0.01,
        session=SessionFile(folder),
        pending=PendingMessage(folder),
    )
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.002)


def test_every_message_is_answered_in_order(tmp_path: Path) -> None:
    link = FakeSuperLink()
    link.messages = [instruction("one"), instruction("two")]
    with running(link, tmp_path) as loop:
        wait_until(lambda: len(link.replies) == 2, "two replies")
        assert loop.connected
    assert [reply.metadata.reply_to_message_id for reply in link.replies] == ["one", "two"]


def test_what_fails_becomes_one_line_without_data_or_traceback(tmp_path: Path) -> None:
    link = FakeSuperLink()
    link.messages = [instruction("task"), instruction("bug"), instruction("fine")]
    with running(link, tmp_path):
        wait_until(lambda: len(link.replies) == 3, "three replies")
    assert link.replies[0].error.reason == "TaskError: no; labels"
    assert link.replies[1].error.reason == "ValueError; the device's log says more"
    assert link.replies[2].has_content()


def test_an_outage_is_reported_and_survived(tmp_path: Path) -> None:
    link = FakeSuperLink()
    link.open_errors = [TransportError("SuperLink cannot be reached")] * 3
    with running(link, tmp_path) as loop:
        wait_until(lambda: loop.connected, "connected after three failures")
        assert loop.problem == ""
        link.open_errors = [TransportError("gone again")] * 10_000
        link.pull_errors = [TransportError("broke")]
        wait_until(lambda: loop.problem == "gone again", "the outage is reported")
        assert not loop.connected
        link.open_errors.clear()
        wait_until(lambda: loop.connected, "connected again")


def test_a_reply_that_an_outage_held_up_is_sent_after_it(tmp_path: Path) -> None:
    link = FakeSuperLink()
    link.push_errors = [TransportError("broke"), TransportError("broke again")]
    link.messages = [instruction("one")]
    with running(link, tmp_path):
        wait_until(lambda: link.replies, "the reply")
    assert link.num_opened == 3
    assert len(link.replies) == 1


def test_what_a_crash_cut_off_is_answered_with_an_error_at_once(tmp_path: Path) -> None:
    cut_off = instruction("one")
    PendingMessage(tmp_path).note(cut_off)
    link = FakeSuperLink()
    with running(link, tmp_path):
        wait_until(lambda: link.replies, "the error reply")
    assert link.replies[0].has_error()
    assert "cut off" in str(link.replies[0].error.reason)
    assert link.replies[0].metadata.reply_to_message_id == cut_off.metadata.message_id
    assert link.replies[0].metadata.run_id == cut_off.metadata.run_id
    assert not (tmp_path / PENDING_FILE).exists()


def test_what_another_node_left_unanswered_is_forgotten(tmp_path: Path) -> None:
    PendingMessage(tmp_path).note(instruction("one"))
    link = FakeSuperLink()
    link.node_id = 43
    link.messages = [instruction("two")]
    with running(link, tmp_path):
        wait_until(lambda: link.replies, "the reply to the next message")
    assert [reply.metadata.reply_to_message_id for reply in link.replies] == ["two"]


def test_an_answered_message_is_no_longer_pending(tmp_path: Path) -> None:
    link = FakeSuperLink()
    link.messages = [instruction("one")]
    with running(link, tmp_path):
        wait_until(lambda: link.replies, "the reply")
        wait_until(lambda: not (tmp_path / PENDING_FILE).exists(), "the note is removed")
    assert not link.replies[0].has_error()


def test_a_damaged_note_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / PENDING_FILE).write_bytes(b"\xff\xff nonsense")
    assert PendingMessage(tmp_path).take(42) is None
    assert not (tmp_path / PENDING_FILE).exists()


def test_a_reply_is_dropped_when_the_node_is_another_one_now(tmp_path: Path) -> None:
    link = FakeSuperLink()

    class Forgetful(TransportError):
        def __init__(self) -> None:
            link.node_id = 43
            super().__init__("the SuperLink does not know this node")

    broke = threading.Event()
    original = link.push

    def push(reply: Message, seconds: float) -> None:
        if not broke.is_set():
            broke.set()
            raise Forgetful
        original(reply, seconds)

    link.push = push  # type: ignore[method-assign]
    link.messages = [instruction("lost"), instruction("kept")]
    with running(link, tmp_path):
        wait_until(lambda: link.replies, "the second reply")
    assert [reply.metadata.reply_to_message_id for reply in link.replies] == ["kept"]


def test_a_reply_that_nobody_wants_is_dropped_at_once(tmp_path: Path) -> None:
    link = FakeSuperLink()
    link.push_errors = [RunNotRunning("ended")]
    link.messages = [instruction("late"), instruction("next")]
    with running(link, tmp_path):
        wait_until(lambda: link.replies, "the next reply")
    assert [reply.metadata.reply_to_message_id for reply in link.replies] == ["next"]
    assert link.num_opened == 1


def test_a_reply_that_is_refused_again_and_again_does_not_block_the_node(tmp_path: Path) -> None:
    link = FakeSuperLink()
    link.push_errors = [Refused("HTTP 500", code=500)] * MAX_PUSHES
    link.messages = [instruction("bad"), instruction("next")]
    with running(link, tmp_path):
        wait_until(lambda: link.replies, "the next reply")
    assert [reply.metadata.reply_to_message_id for reply in link.replies] == ["next"]


def test_an_unforeseen_error_does_not_end_the_node(tmp_path: Path) -> None:
    link = FakeSuperLink()
    link.pull_errors = [KeyError("surprise")]
    link.messages = [instruction("one")]
    with running(link, tmp_path):
        wait_until(lambda: link.replies, "the reply")


def test_a_session_that_was_never_closed_is_remembered(tmp_path: Path) -> None:
    link = FakeSuperLink()
    link.closes_cleanly = False
    with running(link, tmp_path) as loop:
        wait_until(lambda: loop.connected, "connected")
    with running(link, tmp_path) as loop:
        wait_until(lambda: loop.connected, "connected")
        link.closes_cleanly = True
    with running(link, tmp_path) as loop:
        wait_until(lambda: loop.connected, "connected")
    assert link.known == [None, 42, None]


def test_an_idle_node_polls_more_and_more_rarely(tmp_path: Path) -> None:
    link = FakeSuperLink()
    waits: list[float] = []
    with running(link, tmp_path) as loop:
        wait_until(lambda: loop.connected, "connected")
        original = loop._stop.wait

        def wait(timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return original(timeout)

        loop._stop.wait = wait  # type: ignore[method-assign]
        wait_until(lambda: len(waits) > 20, "twenty polls")
    assert waits[0] < waits[20] <= 1.0
