"""The table of runs."""

from pathlib import Path

from simulation.report.compare import HEADINGS, UNKNOWN, rows_of, settings_of
from simulation.report.runs import read_runs
from tests.unit.simulation.report.run_folders import metrics_of, simulated, write_run


def cells(folders: list[Path]) -> list[dict[str, str]]:
    runs = read_runs(folders)
    rows = rows_of(runs, settings_of(runs))
    return [dict(zip(HEADINGS, row.cells, strict=True)) for row in rows]


def test_a_run_is_summed_up_in_its_own_units(tmp_path: Path) -> None:
    lines = [metrics_of(0), simulated(1, speed=90.0), simulated(2, speed=110.0)]
    lines[1]["accuracy_test"] = 0.75
    (row,) = cells([write_run(tmp_path / "a", lines)])
    assert row == {
        "rounds": "2",
        "final accuracy": "0.3000",
        "best accuracy": "0.7500",
        "clients/s": "100",
        "bytes down": "2.0 KiB",
        "bytes up": "1.0 KiB",
        "virtual time": "2 min 0 s",
        "peak memory": "2.0 MiB",
        "ε, devices": "1.000",
        "ε, central": "4.000",
    }


def test_what_a_run_did_not_measure_is_a_dash(tmp_path: Path) -> None:
    (row,) = cells([write_run(tmp_path / "a", [metrics_of(0, accuracy_test=None)])])
    assert row.pop("rounds") == "0"
    assert set(row.values()) == {UNKNOWN}


def test_seeds_are_a_mean_with_its_sample_standard_deviation(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.8, 0.9)):
        write_run(tmp_path / "a" / f"seed-{seed}", [metrics_of(1, accuracy_test=accuracy)])
    (row,) = cells([tmp_path / "a"])
    assert row["final accuracy"] == "0.8500 ± 0.0707"


def test_only_settings_that_differ_are_told_beside_a_run(tmp_path: Path) -> None:
    def config(rate: float, **more: object) -> dict[str, object]:
        server = {"run_dir": str(rate), "train": {"learning_rate": rate, "momentum": 0.9}, **more}
        return {"num_clients": 4, "server": server}

    one = write_run(tmp_path / "one", [metrics_of(0)], config(0.1))
    two = write_run(tmp_path / "two", [metrics_of(0)], config(0.2, codec="int8"))
    bare = write_run(tmp_path / "bare", [metrics_of(0)])
    runs = read_runs([one, two, bare])
    settings = settings_of(runs)
    first, second, third = rows_of(runs, settings)
    assert first.differences == {"server.codec": UNKNOWN, "server.train.learning_rate": "0.1"}
    assert second.differences == {"server.codec": "int8", "server.train.learning_rate": "0.2"}
    assert third.differences == {}
    assert any("no config.json" in note for note in third.notes)
    assert [each.differs for each in settings] == sorted(
        (each.differs for each in settings), reverse=True
    )


def test_seeds_do_not_count_as_a_difference_between_groups(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 5)):
        write_run(tmp_path / name / f"seed-{first}", [metrics_of(0)], {"server": {"seed": first}})
    assert not any(
        each.differs for each in settings_of(read_runs([tmp_path / "a", tmp_path / "b"]))
    )
