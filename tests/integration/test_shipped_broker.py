"""The broker's configuration as we ship it: who may connect, and who may use which topics."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.mosquitto import SHIPPED, Mosquitto, find_program, free_port
from fedge.mqtt.connection import Connection, LinkOptions, Verdict
from fedge.mqtt.link import Link
from fedge.mqtt.messages import Incoming
from fedge.mqtt.settings import BrokerConfig
from fedge.settings import TlsConfig
from tests.tls_files import make_tls

DEADLINE_S = 60.0
PASSWORD = "correct horse"


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


class Listening:
    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.messages: list[str] = []
        self.verdicts: list[str] = []

    def on_up(self, connection: Connection) -> None:
        self.connection = connection

    def on_down(self) -> None:
        self.connection = None

    def on_message(self, message: Incoming) -> None:
        self.messages.append(message.topic)
        message.acknowledge()

    def on_published(self, connection: Connection, number: int, verdict: Verdict) -> None:
        self.verdicts.append(verdict.refusal)


class Shipped:
    """A broker with the shipped files, moved to free ports and a test's own certificates."""

    def __init__(self, folder: Path) -> None:
        server, self.tls = make_tls(folder)
        (folder / "passwords").touch(mode=0o600)
        for name in ("box", "other", "consumer", "sensors"):
            subprocess.run(
                [find_program("mosquitto_passwd"), "-b", folder / "passwords", name, PASSWORD],
                check=True,
            )
        (folder / "acl").write_bytes(SHIPPED.with_name("mosquitto.acl").read_bytes())
        (folder / "acl").chmod(0o600)
        (folder / "secret").write_text(PASSWORD)
        self.secret = folder / "secret"
        self.tls_port = free_port()
        text = SHIPPED.read_text()
        for shipped, here in {
            "persistence_location /var/lib/mosquitto/": f"persistence_location {folder}/",
            "cafile /etc/mosquitto/certs/ca.pem": f"cafile {server.cert}",
            "/etc/mosquitto/certs/broker.pem": str(server.cert),
            "/etc/mosquitto/certs/broker.key": str(server.key),
            "/etc/mosquitto/passwords": f"{folder}/passwords",
            "/etc/mosquitto/acl": f"{folder}/acl",
            "listener 8883": f"listener {self.tls_port} 127.0.0.1",
        }.items():
            lines = [line for line in text.splitlines() if not line.startswith("#")]
            assert any(shipped in line for line in lines), shipped
            text = "\n".join(line.replace(shipped, here) for line in lines)
        kept, _, rest = text.partition("listener 1883 127.0.0.1\n")
        after = rest.splitlines()
        first = next(number for number, line in enumerate(after) if line.startswith("listener"))
        local = tuple(line for line in after[:first] if line)
        tls = [line for line in after[first:] if line]
        self.mosquitto = Mosquitto(folder, [*kept.splitlines()], (*local, *tls))

    def link(self, name: str, filters: tuple[str, ...] = ()) -> tuple[Link, Listening]:
        """Return a link that logs in by TLS, without a name if it is empty."""
        listener = Listening()
        config = BrokerConfig(
            address=f"127.0.0.1:{self.tls_port}",
            username=name,
            password_file=self.secret if name else None,
            reconnect_max_s=0.2,
            tls=TlsConfig(ca=self.tls.ca),
        )
        link = Link(config, LinkOptions(name or "nobody", filters), listener)
        link.start()
        return link, listener


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[Shipped]:
    made = Shipped(tmp_path)
    with made.mosquitto:
        yield made


def test_beyond_this_machine_nobody_connects_without_a_name(shipped: Shipped) -> None:
    link, _ = shipped.link("")
    wait_until(lambda: "Not authorized" in link.problem, "refused")
    link.stop()
    listener = Listening()
    local = Link(BrokerConfig(address=shipped.mosquitto.address), LinkOptions("local"), listener)
    local.start()
    wait_until(lambda: local.connected, "connected from this machine")
    assert local.problem == ""
    local.stop()


def test_a_device_uses_its_own_topics_alone(shipped: Shipped) -> None:
    device, heard = shipped.link("box", ("fedge/w/box/samples", "fedge/w/other/samples"))
    wait_until(lambda: device.connected, f"connected: {device.problem}")
    sensors, sent = shipped.link("sensors")
    wait_until(lambda: sent.connection is not None, "connected")
    assert heard.connection is not None
    assert sent.connection is not None
    sent.connection.publish("fedge/w/other/samples", "x")
    sent.connection.publish("fedge/w/box/samples", "x")
    wait_until(lambda: heard.messages, "its sample")
    for number, topic in enumerate(("box/predictions", "other/predictions", "box/acks"), start=1):
        wait_until(lambda: heard.connection, "connected: mosquitto drops who was refused")
        heard.connection.publish(f"fedge/w/{topic}", "x")
        wait_until(lambda number=number: len(heard.verdicts) == number, "an answer")  # type: ignore[misc]
    device.stop()
    sensors.stop()
    assert heard.messages == ["fedge/w/box/samples"]
    assert heard.verdicts[0] == ""
    assert all("Not authorized" in verdict for verdict in heard.verdicts[1:])
