"""report.html: whole, escaped and self-contained."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from simulation.report.page import write_report
from tests.unit.simulation.report.run_folders import metrics_of, simulated, write_run

HOSTILE = "<script>alert(1)<_script>\"'&$x$"
LOADING = ("src", "href", "xlink:href", "action", "data", "poster", "srcset", "formaction")
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Collects what a browser would load, and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.loads += [value or "" for name, value in attrs if name in LOADING]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def report_on(tmp_path: Path, *folders: Path) -> tuple[Page, str]:
    output = tmp_path / "report.html"
    write_report(folders, output)
    text = output.read_text()
    return Page(text), text


def test_a_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [metrics_of(0), simulated(1)], {"num_clients": 4})
    two = write_run(tmp_path / "two", [metrics_of(0), simulated(1)], {"num_clients": 8})
    page, text = report_on(tmp_path, one, two)
    assert {"script", "link", "img", "iframe", "object", "embed", "base"}.isdisjoint(page.tags)
    assert all(target.startswith("#") for target in page.loads)
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    # Names of XML namespaces are no addresses; there is nothing else that looks like one.
    assert set(re.findall(r'(\S+=")?https?://', text)) <= {'xmlns="', 'xmlns:xlink="'}
    assert "default-src 'none'" in text
    assert page.tags.count("svg") >= 10


def test_ids_are_unique_in_the_page(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, [metrics_of(0), simulated(1)]) for name in ("a", "b")]
    page, _ = report_on(tmp_path, *folders)
    assert len(page.ids) == len(set(page.ids))


def test_names_settings_and_outcomes_are_escaped(tmp_path: Path) -> None:
    lines = [metrics_of(0), simulated(1)]
    lines[1]["simulation"]["outcomes"] = {HOSTILE: 1}
    folder = write_run(tmp_path / HOSTILE, lines, {HOSTILE: HOSTILE})
    other = write_run(tmp_path / "plain", [metrics_of(0)], {HOSTILE: "</style><b>"})
    page, text = report_on(tmp_path, folder, other)
    assert {"script", "_script", "b"}.isdisjoint(page.tags)
    assert "<script" not in text
    assert sum(HOSTILE in data for data in page.text) >= 5


def test_runs_differences_and_reasons_are_there_to_read(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [metrics_of(0), metrics_of(1)], {"num_clients": 4})
    two = write_run(tmp_path / "two", [metrics_of(0), metrics_of(1)], {"num_clients": 8})
    page, text = report_on(tmp_path, one, two)
    assert "num_clients = 4" in page.text
    assert "num_clients = 8" in page.text
    assert "0.2000" in page.text
    assert "no run has simulation.clients_per_s" in text
    # What the two runs have in common is not among the differences.
    assert text.count("<h3>Accuracy by round</h3>") == 1


def test_one_run_needs_no_legend_and_no_column_of_differences(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", [metrics_of(0), simulated(1)], {"num_clients": 4})
    _, text = report_on(tmp_path, folder)
    assert "settings that differ" not in text
    assert "legend key" not in text.split("</style>")[1]


def test_seeds_are_explained(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / "a" / f"seed-{seed}", [metrics_of(0), simulated(1)])
    page, text = report_on(tmp_path, tmp_path / "a")
    assert "seeds" in page.text
    assert "bands reach from the least to the largest" in text


def test_a_page_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [metrics_of(0)])
    with pytest.raises(ConfigError, match=r"cannot write .*none/report\.html: No such file"):
        write_report([folder], tmp_path / "none" / "report.html")
