"""The optional metrics page: the last committed round and the registry, for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError
from fedge.settings import split_address
from server.event_tail import last_object

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KEY = "metrics_address"


def render(metrics: dict[str, Any], gauges: dict[str, float]) -> str:
    """Return one gauge a number of a round's metrics, and the given ones."""
    values = dict(gauges)
    for name, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            values[name] = value
    refused = metrics.get("refused") or {}
    epsilon = [spent for spent in (metrics.get("epsilon") or {}).values() if spent is not None]
    if epsilon:
        values["epsilon_max"] = max(epsilon)
    lines = []
    for name, value in sorted(values.items()):
        lines += [f"# TYPE fedge_{name} gauge", f"fedge_{name} {value!r}"]
    if refused:
        lines.append("# TYPE fedge_refused gauge")
    lines += [f'fedge_refused{{reason="{_label(r)}"}} {n}' for r, n in sorted(refused.items())]
    return "\n".join(lines) + "\n"


def serve_metrics(
    address: str, path: Path, gauges: Callable[[], dict[str, float]]
) -> ThreadingHTTPServer:
    """Serve ``/metrics`` from a metrics file in threads of its own; ``shutdown`` ends it.

    Raises:
        ConfigError: the address is taken or cannot be used.
    """

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "only /metrics is here")
                return
            content = render(last_object(path) or {}, gauges()).encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep scrapes out of the log."""

    try:
        server = ThreadingHTTPServer(split_address(address, KEY), Page)
    except OSError as error:
        raise ConfigError(f"cannot serve on {address}: {error.strerror}", key=KEY) from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
