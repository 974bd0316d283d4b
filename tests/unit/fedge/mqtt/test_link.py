"""The link against a real broker, and against what answers in its place."""

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mosquitto import Mosquitto, find_program, free_port
from fedge.mqtt.connection import Connection, LinkOptions, Verdict
from fedge.mqtt.link import Link
from fedge.mqtt.messages import Incoming
from fedge.mqtt.settings import BrokerConfig
from fedge.settings import TlsConfig
from tests.mqtt_source import Source
from tests.tls_files import make_tls

DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


class Listening:
    """Notes what a link tells, and acknowledges only when told to."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.downs = 0
        self.messages: list[Incoming] = []
        self.verdicts: list[Verdict] = []

    def on_up(self, connection: Connection) -> None:
        self.connections.append(connection)

    def on_down(self) -> None:
        self.downs += 1

    def on_message(self, message: Incoming) -> None:
        self.messages.append(message)

    def on_published(self, connection: Connection, number: int, verdict: Verdict) -> None:
        self.verdicts.append(verdict)


Make = Callable[..., tuple[Link, Listening]]


@pytest.fixture
def make() -> Iterator[Make]:
    links: list[Link] = []

    def build(
        address: str, *, tls: TlsConfig | None = None, client_id: str = "link", **config: Any
    ) -> tuple[Link, Listening]:
        listener = Listening()
        broker = BrokerConfig(
            address=address, reconnect_max_s=0.2, tls=tls or TlsConfig(), **config
        )
        options = LinkOptions(client_id, ["to/link"], status_topic="status/link")
        links.append(Link(broker, options, listener))
        links[-1].start()
        return links[-1], listener

    yield build
    for link in links:
        link.stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


def test_what_is_not_acknowledged_comes_again_after_a_kill_of_the_broker(
    broker: Mosquitto, make: Make
) -> None:
    link, listener = make(broker.address)
    wait_until(lambda: link.connected, "connected")
    with Source(broker.port) as source:
        for number in range(3):
            source.send("to/link", {"number": number})
        wait_until(lambda: len(listener.messages) == 3, "three messages")
        listener.messages[1].acknowledge()
        wait_until(lambda: saved(broker) == {0, 2}, "saved with one acknowledged")
        broker.kill()
        wait_until(lambda: listener.downs == 1, "down")
        listener.messages[0].acknowledge()  # too late: it means nothing on the next connection
        broker.start()
        wait_until(lambda: len(listener.messages) == 5, "two messages again")
    assert [m.payload for m in listener.messages[3:]] == [b'{"number": 0}', b'{"number": 2}']
    assert len(listener.connections) == 2
    assert link.snapshot() == {"connected": 1, "connects_total": 2, "sessions_lost_total": 0}
    assert link.problem == ""


def saved(broker: Mosquitto) -> set[int]:
    """Return which of three messages are on the broker's disk: it acknowledges before it saves."""
    content = (broker.folder / "mosquitto.db").read_bytes()
    return {number for number in range(3) if b'{"number": %d}' % number in content}


def test_what_comes_while_we_are_away_waits_for_us(broker: Mosquitto, make: Make) -> None:
    first, _ = make(broker.address)
    wait_until(lambda: first.connected, "connected")
    first.stop()
    with Source(broker.port) as source:
        source.send("to/link", {"number": 1}).wait_for_publish(DEADLINE_S)
    _, listener = make(broker.address)
    wait_until(lambda: listener.messages, "the message that waited")


def test_a_session_that_the_broker_forgot_is_counted(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with Mosquitto(tmp_path, settings=["max_inflight_messages 20"]) as forgetful:
        link, listener = make(forgetful.address)
        wait_until(lambda: link.connected, "connected")
        forgetful.kill()
        wait_until(lambda: listener.downs == 1, "down")
        forgetful.start()
        wait_until(lambda: link.snapshot()["sessions_lost_total"] == 1, "counted")
    assert "forgotten our session" in caplog.text


def test_the_status_is_retained_and_the_last_will_follows_a_kill_and_a_stop(
    broker: Mosquitto, make: Make
) -> None:
    link, listener = make(broker.address)
    wait_until(lambda: link.connected, "connected")
    listener.connections[0].publish("status/link", "online", retain=True)
    wait_until(lambda: listener.verdicts, "published")
    with Source(broker.port, "status/link") as source:
        source.wait(lambda: source.heard == [("status/link", b"online", True)])
        link.stop()
        source.wait(lambda: source.heard[-1][1] == b"offline")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("refused", "it refuses connections"),
        ("silent", "does not answer"),
        ("closing", "closed the connection"),
        ("no-such-host.invalid:1883", "name cannot be resolved"),
    ],
)
def test_a_broker_that_is_not_there_is_said_and_tried_again(
    address: str, expected: str, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fedge.mqtt.connection.CONNECT_TIMEOUT_S", 0.5)
    tls = None
    stop = threading.Event()
    if address == "no-such-host.invalid:1883":
        tls = make_tls(tmp_path)[1]
    elif address == "refused":
        address = f"127.0.0.1:{free_port()}"
    else:
        address = serve_nothing(address == "closing", stop)
    link, listener = make(address, tls=tls)
    wait_until(lambda: expected in link.problem, f"{expected} in {link.problem!r}")
    wait_until(lambda: listener.downs >= 2, "a second attempt")
    assert not link.connected
    stop.set()


def serve_nothing(closing: bool, stop: threading.Event) -> str:
    """Take connections and say nothing, or close them at once."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)

    def run() -> None:
        held = []
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            if closing:
                connection.close()
            else:
                held.append(connection)
        for connection in held:
            connection.close()
        server.close()

    threading.Thread(target=run, daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def make_password_file(folder: Path) -> tuple[str, ...]:
    """Return a listener's settings that let in ``box`` with the password ``correct horse``."""
    path = folder / "passwords"
    path.touch(mode=0o600)
    subprocess.run(
        [find_program("mosquitto_passwd"), "-b", str(path), "box", "correct horse"], check=True
    )
    return ("allow_anonymous false", f"password_file {path}")


def test_wrong_credentials_are_said_and_right_ones_work_once_the_file_has_them(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = tmp_path / "secret"
    secret.write_text("wrong horse\n")
    with Mosquitto(tmp_path, listener=make_password_file(tmp_path)) as broker:
        link, _ = make(broker.address, username="box", password_file=secret)
        wait_until(lambda: "Not authorized" in link.problem, f"refused: {link.problem}")
        assert "password_file" in link.problem
        secret.write_text("correct horse\n")
        wait_until(lambda: link.connected, "connected")
    assert "horse" not in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of paho
def test_tls_is_spoken_and_a_certificate_of_another_authority_is_not_accepted(
    tmp_path: Path, make: Make
) -> None:
    for name in ("ours", "other"):
        (tmp_path / name).mkdir()
    server, client = make_tls(tmp_path / "ours")
    listener = ("allow_anonymous true", f"certfile {server.cert}", f"keyfile {server.key}")
    with Mosquitto(tmp_path, listener=listener) as broker:
        link, _ = make(broker.address, tls=client)
        wait_until(lambda: link.connected, "connected")
        stranger, _ = make(broker.address, tls=make_tls(tmp_path / "other")[1], client_id="x")
        wait_until(lambda: "certificate is not accepted" in stranger.problem, "refused")


def test_a_client_certificate_lets_in(tmp_path: Path, make: Make) -> None:
    server, client = make_tls(tmp_path)
    listener = (
        *("require_certificate true", "use_identity_as_username true"),
        *(f"cafile {server.cert}", f"certfile {server.cert}", f"keyfile {server.key}"),
    )
    with Mosquitto(tmp_path, listener=listener) as broker:
        without, _ = make(broker.address, tls=client, client_id="x")
        wait_until(lambda: without.problem, "refused")
        tls = TlsConfig(ca=client.ca, cert=server.cert, key=server.key)
        link, _ = make(broker.address, tls=tls)
        wait_until(lambda: link.connected, f"connected: {link.problem}")


def test_two_with_one_client_id_are_told_so(broker: Mosquitto, make: Make) -> None:
    first, _ = make(broker.address)
    wait_until(lambda: first.connected, "connected")
    second, _ = make(broker.address)
    wait_until(
        lambda: "another client connects as 'link'" in first.problem + second.problem,
        "said",
    )


def test_what_the_broker_does_not_grant_is_said(tmp_path: Path, make: Make) -> None:
    poor = ["max_inflight_messages 1", "max_packet_size 2000", "retain_available true"]
    with Mosquitto(tmp_path, settings=poor) as broker:
        link, _ = make(broker.address)
        wait_until(lambda: link.connected, "connected")
        assert "max_inflight_messages" in link.problem
        assert "max_packet_size" in link.problem


def test_a_stop_is_quick_while_the_broker_is_away(make: Make) -> None:
    link, listener = make(f"127.0.0.1:{free_port()}")
    wait_until(lambda: listener.downs, "an attempt")
    link.stop(timeout_s=DEADLINE_S)
    assert not link._thread.is_alive()
