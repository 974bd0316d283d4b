"""What the refine benchmark runs, what it makes of it, and that it runs."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.refine import (
    CLOUD_ONLY,
    FEDAVG,
    PROXY_SIZES,
    REFINED,
    SHIFTED,
    RefineRun,
    config_of,
    plan_runs,
    summarize,
    work,
)
from benchmarks.tasks.mnist_writers import FOLDER, MnistWriters
from server.checks import check_names

needs_mnist = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not there")


def test_every_size_is_refined_and_trained_alone_on_three_seeds() -> None:
    runs = plan_runs(quick=False)
    assert len({run.key for run in runs}) == len(runs) == 3 * (2 + 2 * len(PROXY_SIZES))
    for seed in range(3):
        arms = {(run.arm, run.num_proxy) for run in runs if run.seed == seed}
        assert arms >= {(arm, size) for arm in (REFINED, CLOUD_ONLY) for size in PROXY_SIZES}
        assert arms >= {(FEDAVG, 600), (SHIFTED, 600)}
    assert {(run.num_rounds, run.cohort, run.num_test) for run in runs} == {(30, 50, 10_000)}


def test_arms_differ_in_refinement_alone(tmp_path: Path) -> None:
    plain, *others = (
        config_of(RefineRun(arm, 600, 0), 20, tmp_path).server
        for arm in (FEDAVG, REFINED, SHIFTED, CLOUD_ONLY)
    )
    check_names(others[0])
    assert plain.refine.trainer == ""
    for other in others:
        assert other.refine.trainer == "in-process"
        assert (other.train, other.rounds, other.seed) == (plain.train, plain.rounds, plain.seed)
        assert other.evaluate == plain.evaluate


def found_for(run: RefineRun) -> dict[str, Any]:
    """Return what a run might find: FedAvg reaches 90 % in round 20, refinement in round 5."""
    if run.arm == CLOUD_ONLY:
        return {"gated": 0.91, "free": 0.92}
    first, last = {FEDAVG: (20, 0.93), REFINED: (5, 0.95), SHIFTED: (20, 0.929)}[run.arm]
    by_round = [0.1] * first + [0.9] * (30 - first) + [last]
    drops = [{"round": 1, "lost": 2, "won": 90, "p": 1.0}]
    if run.num_proxy == 100 and run.seed == 1:
        drops.append({"round": 2, "lost": 90, "won": 2, "p": 1e-9})
    return {"by_round": by_round, "accepted": drops}


def test_the_keys_are_those_of_600_images_and_harm_counts_everywhere() -> None:
    runs = plan_runs(quick=False)
    result = summarize(runs, {run.key: found_for(run) for run in runs})
    assert (result["rounds_fedavg"], result["rounds_refined"]) == (20, 5)
    assert result["rounds_ratio"] == 0.25
    assert result["gain_points"] == pytest.approx(2)
    assert result["gain_over_cloud_only_points"] == pytest.approx(3)
    assert result["harmful_accepted"] == 1
    assert result["by_proxy_images"]["100"]["harmful_accepted"] == 1
    assert result["shifted_loss_points"] == pytest.approx(0.1)


def test_a_target_that_is_never_reached_counts_as_one_round_more() -> None:
    runs = plan_runs(quick=False)
    found = {run.key: found_for(run) for run in runs}
    for run in runs:
        if run.arm == FEDAVG:
            found[run.key] = {"by_round": [0.5] * 31}
    assert summarize(runs, found)["rounds_fedavg"] == 31


@needs_mnist
def test_proxy_and_gate_images_can_show_the_first_digits_alone() -> None:
    cloud = MnistWriters(num_proxy=300, cloud_classes=5).cloud_data()
    assert len(cloud.proxy) == 300
    assert set(cloud.proxy.targets) == set(cloud.gate.targets) == set(range(5))
    assert set(cloud.test.targets) == set(range(10))


@needs_mnist
@pytest.mark.slow
def test_a_small_refined_run_tells_what_became_of_each_refinement() -> None:
    found = work(RefineRun(REFINED, 100, 0, num_rounds=1, cohort=2, num_test=300))
    assert len(found["by_round"]) == len(found["refinement"]) == 2
    assert found["refinement"][1] in ("accepted", "rejected")
    assert len(found["accepted"]) == found["refinement"].count("accepted")


def test_quick_runs_are_small_and_still_have_every_arm() -> None:
    runs = plan_runs(quick=True)
    assert {run.arm for run in runs} == {FEDAVG, REFINED, SHIFTED, CLOUD_ONLY}
    assert max(run.num_rounds for run in runs) == 2
    summarize(runs, {run.key: found_for(run) for run in runs})
