"""From accuracies to losses, and to Markdown."""

import pytest

from benchmarks.poison_table import summarize, to_markdown, worst_loss

POINTS = {
    ("iid", "mean", "none", 0): 90.0,
    ("iid", "mean", "none", 1): 80.0,
    ("iid", "mean", "scale", 0): 10.0,
    ("iid", "mean", "scale", 1): 12.0,
    ("iid", "median", "none", 0): 89.0,
    ("iid", "median", "none", 1): 80.5,
    ("iid", "median", "scale", 0): 88.0,
    ("iid", "median", "scale", 1): 79.0,
    ("iid", "median", "alie", 0): 60.0,
    ("iid", "median", "alie", 1): 60.0,
}


def test_a_loss_is_against_the_unattacked_baseline_of_the_same_seed() -> None:
    table = summarize(POINTS, "mean")
    assert table["iid"]["baseline_points"] == 85.0
    assert table["iid"]["num_seeds"] == 2
    losses = table["iid"]["loss_points"]
    assert losses["mean"] == {"none": 0.0, "scale": 74.0}
    assert losses["median"] == {"none": 0.25, "scale": 1.5, "alie": 25.0}


def test_the_worst_leaves_out_no_attack_and_the_exempt_ones() -> None:
    table = summarize(POINTS, "mean")
    assert worst_loss(table, "iid", "median") == pytest.approx(1.5)
    assert worst_loss(table, "iid", "fltrust") is None
    assert worst_loss(table, "elsewhere", "median") is None


def test_a_gain_under_attack_is_a_negative_loss() -> None:
    points = {("iid", "mean", "none", 0): 90.0, ("iid", "mean", "nan", 0): 91.0}
    assert worst_loss(summarize(points, "mean"), "iid", "mean") == -1.0


def test_markdown_has_a_line_a_method_and_the_exempt_attacks_last() -> None:
    assert to_markdown(summarize(POINTS, "mean")) == (
        "**iid**: unattacked weighted mean 85.0 %, 2 seeds; points lost\n"
        "\n"
        "| method | none | scale | alie |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| mean | 0.0 | 74.0 |  |\n"
        "| median | 0.2 | 1.5 | 25.0 |\n"
    )
