"""The metrics page."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from server.prometheus import render, serve_metrics

METRICS = {
    "round": 3,
    "round_s": 1.5,
    "accuracy_test": 0.91,
    "loss_test": None,
    "applied": True,
    "refinement": "accepted",
    "refused": {"not-finite": 2, 'odd"name': 1},
    "epsilon": {"17": 0.5, "18": 1.25, "19": None},
    "evaluation": None,
}


def parse(text: str) -> dict[str, float]:
    """Return samples by name and labels; an oracle for the lines that are not comments."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_numbers_become_gauges_and_other_values_do_not() -> None:
    assert parse(render(METRICS, {"watching_devices": 4})) == {
        "fedge_round": 3.0,
        "fedge_round_s": 1.5,
        "fedge_accuracy_test": 0.91,
        "fedge_epsilon_max": 1.25,
        "fedge_watching_devices": 4.0,
        'fedge_refused{reason="not-finite"}': 2.0,
        'fedge_refused{reason="odd\\"name"}': 1.0,
    }


def test_every_name_is_declared_once() -> None:
    text = render(METRICS, {"watching_devices": 4})
    declared = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    names = {name.partition("{")[0] for name in parse(text)}
    assert sorted(declared) == sorted(names)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    server = serve_metrics(
        "127.0.0.1:0", tmp_path / "metrics.jsonl", lambda: {"published_round": 0}
    )
    yield f"http://127.0.0.1:{server.port}"
    server.close()


def get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10.0) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())


def test_the_page_follows_the_file(page: str, tmp_path: Path) -> None:
    assert parse(get(page + "/metrics")) == {"fedge_published_round": 0.0}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        for round in (1, 2):
            file.write(json.dumps({"round": round}) + "\n")
    assert parse(get(page + "/metrics"))["fedge_round"] == 2.0


def test_there_is_nothing_else(page: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(page + "/")
    assert caught.value.code == 404
    caught.value.close()


def test_a_taken_address_is_a_config_error(page: str, tmp_path: Path) -> None:
    address = page.removeprefix("http://")
    with pytest.raises(ConfigError, match=f"metrics_address: cannot serve on {address}"):
        serve_metrics(address, tmp_path / "metrics.jsonl", dict)
