"""A Prometheus page over HTTP: numbers in the text format, for whoever scrapes this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from fedge.errors import ConfigError
from fedge.settings import is_loopback, split_address

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONNECTION_TIMEOUT_S = 10.0

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """One metric: a name, what it is, and its samples.

    Attributes:
        kind: ``counter``, ``gauge`` or ``histogram``.
        samples: what follows the name (``""``, ``_bucket``, ...), labels, and the value.
    """

    name: str
    kind: str
    samples: tuple[tuple[str, Labels, float], ...]
    help: str = ""


@dataclass(frozen=True)
class Histogram:
    """Counts by upper bound, as Prometheus has them.

    Attributes:
        bounds: upper bounds of all buckets but the last, which has none; rising.
        counts: observations in each bucket, one more than there are bounds.
        total: sum of what was observed.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    def family(self, name: str, help: str = "") -> Family:
        """Return it as a metric, buckets cumulative."""
        samples: list[tuple[str, Labels, float]] = []
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            samples.append(("_bucket", (("le", _number(bound)),), seen))
        samples += [("_sum", (), self.total), ("_count", (), seen)]
        return Family(name, "histogram", tuple(samples), help)


def plain_families(
    values: Mapping[str, float], helps: Mapping[str, str] | None = None
) -> list[Family]:
    """Return one metric a number: a counter where its name ends in ``_total``, else a gauge."""
    known = helps or {}
    return [
        Family(
            name,
            "counter" if name.endswith("_total") else "gauge",
            (("", (), value),),
            known.get(name, ""),
        )
        for name, value in sorted(values.items())
    ]


def render(families: Iterable[Family]) -> str:
    """Return the page's text, version 0.0.4 of Prometheus' format."""
    lines = []
    for family in families:
        if family.help:
            text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
            lines.append(f"# HELP {family.name} {text}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for suffix, labels, value in family.samples:
            inner = ",".join(f'{key}="{_label(text)}"' for key, text in labels)
            braces = f"{{{inner}}}" if inner else ""
            lines.append(f"{family.name}{suffix}{braces} {_number(value)}")
    return "\n".join(lines) + "\n"


@dataclass
class MetricsPage:
    """A page that is being served; `close` ends it."""

    server: ThreadingHTTPServer
    _thread: threading.Thread = field(repr=False)

    @property
    def port(self) -> int:
        """The port it is on."""
        return int(self.server.server_address[1])

    def close(self) -> None:
        """End it and free the port."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], page: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, page)

    def server_bind(self) -> None:
        """Bind, without asking DNS for this machine's name as the base class does."""
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)


def serve_page(address: str, content: Callable[[], str], *, key: str) -> MetricsPage:
    """Serve ``/metrics`` in threads of its own.

    On loopback only requests that name this machine are answered: else a web page that a person
    opens on this machine could give its own name this address and read the numbers.

    Args:
        address: ``host:port``.
        content: makes the text, once a request, in the request's thread.
        key: dotted key of the configuration that names the address.

    Raises:
        ConfigError: the address is taken or cannot be used.
    """
    local = is_loopback(address)

    class Page(BaseHTTPRequestHandler):
        timeout = CONNECTION_TIMEOUT_S  # a connection that says nothing gives its thread back

        def do_GET(self) -> None:
            if local and not is_loopback(self.headers.get("Host", "localhost")):
                self.send_error(421, "ask for this page by a name of this machine")
                return
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "only /metrics is here")
                return
            text = content().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep scrapes out of the log."""

    try:
        server = _Server(split_address(address, key), Page)
    except OSError as error:
        raise ConfigError(f"cannot serve on {address}: {error.strerror}", key=key) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return MetricsPage(server, thread)


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    if value == float("-inf"):
        return "-Inf"
    return "NaN" if value != value else repr(value)


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
