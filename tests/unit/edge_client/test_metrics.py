import threading
from dataclasses import replace

import pytest

from edge_client.latency import BOUNDS_US, LatencyHistogram
from edge_client.metrics import Metrics
from edge_client.process_figures import process_figures, resident_bytes
from edge_client.settings import EdgeConfig, RegistryClientConfig
from fedge.errors import ConfigError, StoreError
from tests.prometheus_text import read_page


def test_parts_show_their_numbers_under_their_name() -> None:
    metrics = Metrics()
    metrics.add("mqtt", lambda: {"received_total": 3, "outbox_bytes": 12.0})
    metrics.add("serving", lambda: {"predictions_total": 5}, prefix="")
    metrics.latency.observe(30.0)
    page = read_page(metrics.render())
    assert page["fedge_edge_mqtt_received_total"] == 3
    assert page["fedge_edge_mqtt_outbox_bytes"] == 12
    assert page["fedge_edge_predictions_total"] == 5
    assert page['fedge_edge_prediction_seconds_bucket{le="5e-05"}'] == 1
    assert page['fedge_edge_prediction_seconds_bucket{le="2e-05"}'] == 0
    assert page["fedge_edge_prediction_seconds_sum"] == pytest.approx(30e-6)


def test_a_part_that_fails_is_left_out_and_counted() -> None:
    def fail() -> dict[str, float]:
        raise StoreError("disk full")

    metrics = Metrics()
    metrics.add("samples", fail)
    metrics.add("mqtt", lambda: {"connected": 1})
    assert metrics.snapshot() == {"mqtt_connected": 1, "source_errors_total": 1}
    metrics.add("samples", lambda: {"bytes": 7})
    assert metrics.snapshot()["samples_bytes"] == 7


def test_every_answer_is_counted_from_any_thread() -> None:
    histogram = LatencyHistogram()

    def answer() -> None:
        for latency_us in (5, 10, 11, 1e7):
            for _ in range(500):
                histogram.observe(latency_us)

    threads = [threading.Thread(target=answer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = histogram.read()
    assert found.counts[:2] == (4000, 2000)
    assert found.counts[len(BOUNDS_US)] == 2000
    assert sum(found.counts) == 8000
    assert found.total == pytest.approx(2000 * (5 + 10 + 11 + 1e7) / 1e6)


def test_this_process_holds_memory_and_one_that_ended_does_not() -> None:
    figures = process_figures()
    assert figures["resident_memory_bytes"] > 10e6
    assert figures["cpu_seconds_total"] > 0
    assert resident_bytes(2**22 + 1) is None


def test_the_page_stays_on_this_device() -> None:
    config = EdgeConfig(registry=RegistryClientConfig(address=""))
    assert replace(config, metrics_address="127.0.0.1:9465").metrics_address
    with pytest.raises(ConfigError, match=r"metrics_address: 0\.0\.0\.0:9465 is not on loopback"):
        replace(config, metrics_address="0.0.0.0:9465")
    with pytest.raises(ConfigError, match="metrics_address: must be host:port"):
        replace(config, metrics_address="9465")
