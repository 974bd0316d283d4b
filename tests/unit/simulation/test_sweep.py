"""Seeds and sweeps, with a run that only writes what a run leaves behind."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from fedge.config import load, to_tree
from fedge.errors import ConfigError, TaskError
from simulation.runner import SimulationResult
from simulation.settings import SimulateConfig
from simulation.sweep import Combination, Outcome, combinations, run_sweep, summary_table

RATE = "server.train.learning_rate"
EPOCHS = "server.train.local_epochs"


def loader(root: Path, *texts: str) -> Callable[[Sequence[str]], SimulateConfig]:
    fixed = [f"server.run_dir={root}", "server.rounds.num_rounds=2", *texts]
    return lambda extra: load(SimulateConfig, None, [*fixed, *extra])


class FakeRun:
    """Writes a run folder; accuracy is learning rate plus seed / 100."""

    def __init__(self, failing: Exception | None = None, on: str = "") -> None:
        self.titles: list[str] = []
        self._failing = failing
        self._on = on

    def __call__(self, combination: Combination) -> SimulationResult:
        self.titles.append(combination.title)
        server = combination.config.server
        folder = server.run_dir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(to_tree(combination.config)))
        accuracy = server.train.learning_rate + server.seed / 100
        failing = self._failing is not None and self._on in combination.title
        rounds = [
            {"round": round, "accuracy_test": accuracy}
            for round in range(1 if failing else server.rounds.num_rounds + 1)
        ]
        text = "".join(json.dumps(each) + "\n" for each in rounds)
        (folder / "metrics.jsonl").write_text(text)
        if self._failing is not None and failing:
            raise self._failing
        return SimulationResult(folder, rounds)


def printed(outcomes: Sequence[Outcome]) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(summary_table(outcomes))
    return capture.get()


def test_every_combination_has_every_seed_and_a_folder_of_its_own(tmp_path: Path) -> None:
    load_with = loader(tmp_path, "server.seed=3")
    found = combinations(load_with, [f"{RATE}=0.1,0.2", f"{EPOCHS}=1,5"], 2)
    assert [(each.config.server.train.learning_rate, each.seed) for each in found] == [
        (rate, seed) for rate in (0.1, 0.2) for _ in range(2) for seed in (3, 4)
    ]
    assert len({each.run_dir for each in found}) == 8
    assert found[0].run_dir == tmp_path / f"{RATE}=0.1,{EPOCHS}=1" / "seed-3"
    assert found[0].keys == {RATE: 0.1, EPOCHS: 1}
    assert all(each.config.server.seed == each.seed for each in found)


def test_seeds_alone_lie_in_the_run_folder_itself(tmp_path: Path) -> None:
    found = combinations(loader(tmp_path), [], 3)
    assert [each.run_dir for each in found] == [tmp_path / f"seed-{seed}" for seed in range(3)]


def test_values_are_split_outside_quotes_and_brackets_and_read_as_overrides(
    tmp_path: Path,
) -> None:
    sweep = 'server.task.options.x=[1, 2],"a,b",{ c = 1 },plain/text'
    found = combinations(loader(tmp_path), [sweep])
    values = [each.config.server.task.options["x"] for each in found]
    assert values == [[1, 2], "a,b", {"c": 1}, "plain/text"]
    assert {each.run_dir.parent.parent for each in found} == {tmp_path}


def test_a_long_value_makes_a_folder_name_that_a_disk_takes(tmp_path: Path) -> None:
    values = ["x" * 400 + end for end in "ab"]
    found = combinations(loader(tmp_path), ["server.task.options.x=" + ",".join(values)])
    assert len({each.name for each in found}) == 2
    assert max(len(each.name.encode()) for each in found) <= 200


@pytest.mark.parametrize(
    ("sweeps", "num_seeds", "expected"),
    [
        ([RATE], 1, "--sweep takes key=a,b,c"),
        ([f"{RATE}="], 1, "--sweep takes key=a,b,c"),
        ([f"{RATE}=1,,2"], 1, "--sweep takes key=a,b,c"),
        ([f"{RATE}=1,1"], 1, f"{RATE}: --sweep names '1' twice"),
        ([f"{RATE}=1", f"{RATE}=2"], 1, f"{RATE}: --sweep names it twice"),
        (["server.seed=1,2"], 1, "server.seed: cannot be swept: the seeds of a sweep"),
        (["server.run_dir=a,b"], 1, "server.run_dir: cannot be swept"),
        (["server.train.learning_rat=1"], 1, "server.train.learning_rat: unknown key"),
        ([f"{RATE}=0.1,-1"], 1, f"{RATE}: must be > 0, got -1"),
        ([], 0, "--seeds must be >= 1, got 0"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(
    tmp_path: Path, sweeps: list[str], num_seeds: int, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        combinations(loader(tmp_path), sweeps, num_seeds)
    assert expected in str(caught.value)


def test_the_folder_of_a_single_run_takes_no_seeds(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"server\.run_dir: .* holds a single run"):
        combinations(loader(tmp_path), [], 2)


def test_results_are_one_table_with_the_swept_settings(tmp_path: Path) -> None:
    found = combinations(loader(tmp_path), [f"{RATE}=0.25,0.5"], 2)
    outcomes = run_sweep(found, FakeRun(), tmp_path / "results.parquet")
    assert not any(outcome.error for outcome in outcomes)
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert len(rows) == 12
    assert rows[-1] == {
        "run": f"{RATE}=0.5",
        "seed": 1,
        RATE: 0.5,
        "round": 2,
        "accuracy_test": 0.51,
    }
    table = printed(outcomes)
    assert f"{RATE} = 0.25" in table
    # Sample standard deviation of 0.25 and 0.26.
    assert "0.2550 ± 0.0071" in table


def test_what_is_finished_is_not_run_again_and_what_was_cut_off_is(tmp_path: Path) -> None:
    results = tmp_path / "results.parquet"
    found = combinations(loader(tmp_path), [f"{RATE}=0.25,0.5"], 2)
    run_sweep(found, FakeRun(), results)
    path = found[2].run_dir / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]) + '{"round": 2, "acc')
    again = FakeRun()
    outcomes = run_sweep(found, again, results)
    assert again.titles == [found[2].title]
    assert pq.read_table(results).num_rows == 12
    assert [outcome.final_accuracy for outcome in outcomes] == [0.25, 0.26, 0.5, 0.51]


def test_more_rounds_resume_every_combination(tmp_path: Path) -> None:
    run_sweep(combinations(loader(tmp_path), [], 2), FakeRun(), tmp_path / "results.parquet")
    again = FakeRun()
    more = combinations(loader(tmp_path, "server.rounds.num_rounds=3"), [], 2)
    outcomes = run_sweep(more, again, tmp_path / "results.parquet")
    assert len(again.titles) == 2
    assert not any(outcome.error for outcome in outcomes)


def test_a_folder_of_other_settings_is_refused_and_not_mixed_in(tmp_path: Path) -> None:
    run_sweep(combinations(loader(tmp_path), [], 1), FakeRun(), tmp_path / "results.parquet")
    again = FakeRun()
    other = combinations(loader(tmp_path, f"{RATE}=0.75"), [], 1)
    (outcome,) = run_sweep(other, again, tmp_path / "results.parquet")
    assert again.titles == []
    assert outcome.error.startswith(f"{RATE}: ")
    assert "now it is 0.75" in outcome.error


@pytest.mark.parametrize("failing", [TaskError("no data"), ZeroDivisionError("bug")])
def test_one_that_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, failing: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    found = combinations(loader(tmp_path), [f"{RATE}=0.25,0.5"], 2)
    run = FakeRun(failing, on=f"{RATE}=0.25 seed 1")
    outcomes = run_sweep(found, run, tmp_path / "results.parquet")
    assert len(run.titles) == 4
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, False, False]
    assert str(failing) in outcomes[1].error
    assert f"{RATE}=0.25 seed 1 failed" in caplog.text
    rows = [text.split() for text in printed(outcomes).splitlines()]
    # The mean is over those that ended: one seed, which has no spread.
    assert any({"1", "0.2500"} <= set(row) for row in rows)
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 3 + 1 + 6


def test_results_so_far_are_kept_when_a_person_stops_it(tmp_path: Path) -> None:
    found = combinations(loader(tmp_path), [f"{RATE}=0.25,0.5"])

    def run(combination: Combination) -> SimulationResult:
        if combination is found[1]:
            raise KeyboardInterrupt
        return FakeRun()(combination)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(found, run, tmp_path / "results.parquet")
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 3


def test_a_task_without_accuracy_has_a_dash() -> None:
    combination = Combination("", {}, 0, SimulateConfig())
    assert "–" in printed([Outcome(combination, [{"round": 1, "accuracy_test": None}])])
