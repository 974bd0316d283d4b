"""Figures: what is drawn, what is left out and why."""

import re
from pathlib import Path
from xml.etree import ElementTree

from simulation.report.drawing import NUM_COLORS
from simulation.report.plots import LINE_PLOTS, LeftOut, Plot, draw_plots
from simulation.report.runs import Run, read_runs
from tests.unit.simulation.report.run_folders import metrics_of, simulated, write_run

FULL = [metrics_of(0), simulated(1), simulated(2)]


def drawn(runs: list[Run]) -> tuple[dict[str, Plot], dict[str, LeftOut]]:
    plots, left_out = draw_plots(runs)
    return {each.key: each for each in plots}, {each.title: each for each in left_out}


def test_a_run_with_every_figure_has_every_plot(tmp_path: Path) -> None:
    plots, left_out = drawn(read_runs([write_run(tmp_path / "a", FULL)]))
    assert set(plots) == {spec.key for spec in LINE_PLOTS} | {"deciles", "outcomes-0"}
    assert not left_out
    for plot in plots.values():
        assert ElementTree.fromstring(plot.svg).tag.endswith("svg")


def test_what_no_run_measured_is_left_out_with_a_reason(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a", [metrics_of(0), metrics_of(1)])])
    plots, left_out = drawn(runs)
    assert set(plots) == {"accuracy-round", "loss"}
    assert left_out["Privacy spent"].reason == (
        "the run has no epsilon of a device, nor epsilon_central, which runs without "
        "differential privacy do not have."
    )
    assert "simulation.virtual_s" in left_out["Accuracy by virtual time"].reason
    assert "every_rounds above 0" in left_out["Fairness: accuracy over clients"].reason
    for each in left_out.values():
        assert each.reason.count(".") >= 1
        assert each.reason.endswith(".")


def test_a_run_that_lacks_what_others_have_is_named_in_the_caption(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", FULL)
    two = write_run(tmp_path / "two", [metrics_of(0), metrics_of(1)])
    plots, left_out = drawn(read_runs([one, two]))
    assert "Not drawn: two (no simulation.rss_bytes)." in plots["memory"].caption
    assert plots["accuracy-round"].caption == ""
    assert "outcomes-0" in plots
    assert list(left_out) == ["What became of the clients: two"]


def test_several_seeds_have_a_band_and_one_has_none(tmp_path: Path) -> None:
    for seed in range(2):
        lines = [metrics_of(round, accuracy_test=0.1 * round * (seed + 1)) for round in range(3)]
        write_run(tmp_path / "a" / f"seed-{seed}", lines)
    group, _ = drawn(read_runs([tmp_path / "a"]))
    alone, _ = drawn(read_runs([tmp_path / "a" / "seed-0"]))
    assert "FillBetween" in group["accuracy-round"].svg
    assert "FillBetween" not in alone["accuracy-round"].svg


def test_ids_of_two_drawings_never_meet_and_every_reference_has_its_target(
    tmp_path: Path,
) -> None:
    plots, _ = draw_plots(read_runs([write_run(tmp_path / "a", FULL)]))
    seen: set[str] = set()
    for plot in plots:
        ids = re.findall(r'\bid="([^"]+)"', plot.svg)
        assert len(ids) == len(set(ids))
        assert seen.isdisjoint(ids)
        seen.update(ids)
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', plot.svg)) <= set(ids)


def test_colours_are_those_of_the_page(tmp_path: Path) -> None:
    lines = [metrics_of(0), metrics_of(1)]
    runs = read_runs([write_run(tmp_path / f"r{n}", lines) for n in range(NUM_COLORS + 1)])
    plots, _ = drawn(runs)
    svg = plots["accuracy-round"].svg
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) <= {"#000000"}
    assert {f"var(--c{index})" for index in range(NUM_COLORS)} <= set(
        re.findall(r"var\(--c\d\)", svg)
    )
    # The run after the last color takes the first again, dashed.
    assert re.search(r"stroke-dasharray[^;]*;[^\"]*var\(--c0\)|var\(--c0\)[^\"]*dasharray", svg)


def test_the_same_runs_give_the_same_drawing(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a", [metrics_of(0), metrics_of(1)])])
    assert draw_plots(runs) == draw_plots(runs)


def test_outcomes_are_explained_by_those_that_occur(tmp_path: Path) -> None:
    lines = [simulated(1)]
    lines[0]["simulation"]["outcomes"] = {"lost": 1, "ok": 2, "late": 1}
    plots, _ = drawn(read_runs([write_run(tmp_path / "a", lines)]))
    legend = plots["outcomes-0"].legend
    assert [entry.name for entry in legend] == ["ok", "late", "lost"]
    assert len({entry.index for entry in legend}) == 3
