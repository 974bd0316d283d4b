"""The server's metrics page: the last committed round and the registry, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedge.metrics_page import Family, MetricsPage, serve_page
from fedge.metrics_page import render as render_families
from server.event_tail import last_object

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
    families = [
        Family(f"fedge_{name}", "gauge", (("", (), value),))
        for name, value in sorted(values.items())
    ]
    if refused:
        samples = tuple(("", (("reason", r),), float(n)) for r, n in sorted(refused.items()))
        families.append(Family("fedge_refused", "gauge", samples))
    return render_families(families)


def serve_metrics(address: str, path: Path, gauges: Callable[[], dict[str, float]]) -> MetricsPage:
    """Serve ``/metrics`` from a metrics file; ``close`` ends it.

    Raises:
        ConfigError: the address is taken or cannot be used.
    """
    return serve_page(address, lambda: render(last_object(path) or {}, gauges()), key=KEY)
