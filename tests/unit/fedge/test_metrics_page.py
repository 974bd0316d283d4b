import http.client
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ConfigError
from fedge.metrics_page import (
    Family,
    Histogram,
    MetricsPage,
    plain_families,
    render,
    serve_page,
)
from tests.prometheus_text import read_page


def test_names_that_end_in_total_are_counters_and_others_gauges() -> None:
    text = render(plain_families({"b_total": 3.0, "a": 0.5}, {"a": "one\nline \\ here"}))
    assert text.splitlines() == [
        "# HELP a one\\nline \\\\ here",
        "# TYPE a gauge",
        "a 0.5",
        "# TYPE b_total counter",
        "b_total 3.0",
    ]
    assert read_page(text) == {"a": 0.5, "b_total": 3.0}


def test_a_histogram_is_cumulative_and_ends_at_infinity() -> None:
    family = Histogram((0.1, 1.0), (2, 3, 4), 12.5).family("wait_seconds", "How long.")
    assert read_page(render([family])) == {
        'wait_seconds_bucket{le="0.1"}': 2,
        'wait_seconds_bucket{le="1.0"}': 5,
        'wait_seconds_bucket{le="+Inf"}': 9,
        "wait_seconds_sum": 12.5,
        "wait_seconds_count": 9,
    }


@given(st.text(), st.floats())
def test_any_label_and_any_number_keep_the_format(text: str, value: float) -> None:
    page = render([Family("x", "gauge", (("", (("reason", text),), value),))])
    lines = page.split("\n")
    assert lines[0] == "# TYPE x gauge"
    assert len(lines) == 3
    assert lines[1].startswith('x{reason="')
    [found] = read_page(page).values() if "\r" not in text and text.isprintable() else [value]
    assert found == value or value != value


@pytest.fixture
def page() -> Iterator[MetricsPage]:
    page = serve_page("127.0.0.1:0", lambda: "x 1\n", key="metrics_address")
    yield page
    page.close()


def ask(page: MetricsPage, path: str = "/metrics", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    try:
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_page_is_served_and_nothing_else(page: MetricsPage) -> None:
    assert ask(page) == (200, "x 1\n")
    assert ask(page, "/metrics?x=1") == (200, "x 1\n")
    assert ask(page, "/")[0] == 404


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9465", "[::1]:9465"])
def test_this_machines_names_are_answered(page: MetricsPage, host: str) -> None:
    assert ask(page, host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9465", "127.0.0.1.evil.example"])
def test_a_web_page_that_points_its_name_here_reads_nothing(page: MetricsPage, host: str) -> None:
    status, text = ask(page, host=host)
    assert status == 421
    assert "x 1" not in text


def test_a_taken_address_is_a_config_error(page: MetricsPage) -> None:
    address = f"127.0.0.1:{page.port}"
    with pytest.raises(ConfigError, match=f"metrics_address: cannot serve on {address}"):
        serve_page(address, str, key="metrics_address")


def test_closing_frees_the_port() -> None:
    page = serve_page("127.0.0.1:0", str, key="metrics_address")
    port = page.port
    page.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
