"""What this device counts, gathered from its parts by name.

A part offers ``snapshot() -> dict[str, float]``; a name that ends in ``_total`` only grows. The
page for Prometheus, the Status call and ``fedge-edge status`` show the same numbers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from edge_client.latency import LatencyHistogram
from fedge.errors import FedgeError
from fedge.metrics_page import Family, plain_families, render

PREFIX = "fedge_edge"
Snapshot = Callable[[], Mapping[str, float]]

HELPS = {
    "predictions_total": "Requests answered; a batch is one request.",
    "prediction_failures_total": "Requests that were refused or failed in the engine.",
    "prediction_seconds": "Time in the engine, waiting for other requests included.",
    "model_round": "Round of the version that answers; 0 is the model as shipped.",
    "model_swaps_total": "Versions that took over since the daemon started.",
    "healthy": "1 while the last self-check passed.",
    "self_check_age_seconds": "Time since a self-check last passed.",
    "registry_connected": "1 while the model registry is reached.",
    "node_connected": "1 while the SuperLink is reached.",
    "samples_labelled": "Samples kept that have a label.",
    "samples_unlabelled": "Samples kept that wait for a label.",
    "samples_bytes": "Bytes that the samples kept take.",
    "samples_duplicates_total": "Samples dropped because they had come before.",
    "privacy_epsilon_spent": "Privacy spent, all rounds together.",
    "privacy_epsilon_left": "Privacy budget left.",
    "training_rounds_total": "Rounds trained since the daemon started.",
    "training_paused": "1 while training waits.",
    "training_resident_memory_bytes": "Memory of the training process.",
    "mqtt_connected": "1 while the broker is reached.",
    "mqtt_sessions_lost_total": "Times that the broker had forgotten our session.",
    "mqtt_samples_received_total": "Messages on the samples topic.",
    "mqtt_samples_accepted_total": "Samples that had not come before.",
    "mqtt_duplicates_total": "Samples that had come before.",
    "mqtt_sequence_gap": "Numbers of known sources that have not come.",
    "mqtt_outbox_waiting": "Predictions that wait for their acknowledgement.",
    "mqtt_outbox_bytes": "Bytes that they take.",
    "mqtt_outbox_dropped_total": "Old predictions that made room for new ones.",
    "mqtt_outbox_refused_total": "New predictions that found no room.",
    "mqtt_predictions_delivered_total": "Predictions that were acknowledged.",
    "mqtt_predictions_resent_total": "Predictions sent more than once on a connection.",
    "mqtt_predictions_unheard_total": "Predictions that nobody subscribed to.",
    "source_errors_total": "Numbers that could not be read for this page.",
}

log = logging.getLogger(__name__)


class Metrics:
    """The parts that count, by name; safe across threads.

    Args:
        latency: of the engine.
    """

    def __init__(self, latency: LatencyHistogram | None = None) -> None:
        self.latency = latency or LatencyHistogram()
        self._lock = threading.Lock()
        self._sources: dict[str, tuple[str, Snapshot]] = {}
        self._num_errors = 0

    def add(self, name: str, source: Snapshot, *, prefix: str | None = None) -> None:
        """Show a part's numbers as ``name_<key>``; the same name again replaces it.

        Args:
            prefix: in place of ``name_``.
        """
        with self._lock:
            self._sources[name] = (f"{name}_" if prefix is None else prefix, source)

    def snapshot(self) -> dict[str, float]:
        """Return all numbers by name, without prefix; a part that fails is left out."""
        with self._lock:
            sources = list(self._sources.items())
        values: dict[str, float] = {}
        for name, (prefix, source) in sources:
            try:
                found = source()
            except FedgeError as error:
                self._num_errors += 1
                log.warning("no figures of %s: %s", name, error)
                continue
            values.update({prefix + key: value for key, value in found.items()})
        values["source_errors_total"] = self._num_errors
        return values

    def render(self) -> str:
        """Return the page for Prometheus."""
        helps = {f"{PREFIX}_{key}": text for key, text in HELPS.items()}
        plain = {f"{PREFIX}_{key}": float(value) for key, value in self.snapshot().items()}
        name = f"{PREFIX}_prediction_seconds"
        families: list[Family] = plain_families(plain, helps)
        families.append(self.latency.read().family(name, helps[name]))
        return render(families)
