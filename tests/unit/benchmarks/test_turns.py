"""How engines take turns, and how peers' scripts are started and read."""

import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import peer_runs
from benchmarks.engines import flower_settings, pfl_settings
from benchmarks.harness import CannotRun
from benchmarks.peer_runs import Peer, PeerFailed, python_of, read_rounds
from benchmarks.peers.work import Work
from benchmarks.turns import Outcome, Side, describe, ratio, take_turns

WORK = Work("mlp", num_clients=4, num_examples=20, num_rounds=3)


def engine(log: list[str], name: str, seconds: Callable[[Work], float]) -> Side:
    def run(work: Work) -> list[float]:
        log.append(f"{name} {work.setting}")
        return [seconds(work)] * 2

    return Side(run, [replace(WORK, num_processes=n) for n in (1, 2)])


def test_engines_alternate_and_peers_keep_their_best_setting() -> None:
    log: list[str] = []
    sides = {
        "ours": Side(engine(log, "ours", lambda _: 1.0).run, [WORK]),
        "peer": engine(log, "peer", lambda work: 6.0 / work.num_processes),
    }
    outcomes = take_turns(sides, 3)
    rest = ["ours 1 x 1", "peer 2 x 1"]
    assert log == ["ours 1 x 1", "peer 1 x 1", "peer 2 x 1", *rest, *rest]
    assert outcomes["peer"].settings == {"1 x 1": 6.0, "2 x 1": 3.0}
    assert outcomes["peer"].seconds == [3.0, 3.0, 3.0]
    assert ratio(outcomes["peer"], outcomes["ours"]) == 3.0
    assert describe(outcomes)["peer"]["setting"] == "2 x 1"


def test_a_ratio_is_the_median_of_those_within_a_turn() -> None:
    ours = Outcome([1.0, 2.0, 4.0], {}, "")
    peer = Outcome([3.0, 20.0, 16.0], {}, "")
    assert ratio(peer, ours) == 4.0  # of 3, 10 and 4, and not of the medians 16 and 2


def test_a_setting_that_fails_is_passed_over_and_said() -> None:
    def run(work: Work) -> list[float]:
        if work.num_processes > 1:
            raise PeerFailed("no such launcher")
        return [2.0]

    settings = [replace(WORK, num_processes=n) for n in (2, 1)]
    outcome = take_turns({"peer": Side(run, settings)}, 1)["peer"]
    assert (outcome.best, outcome.settings) == ("1 x 1", {"2 x 1": None, "1 x 1": 2.0})
    with pytest.raises(CannotRun, match="no such launcher"):
        take_turns({"peer": Side(run, settings[:1])}, 1)


def test_peers_may_use_every_core_in_several_ways() -> None:
    flower = {work.setting for work in flower_settings(WORK, 2, quick=False)}
    assert flower == {"2 x 1", "4 x 1", "8 x 1", "1 x 2"}
    assert {work.setting for work in pfl_settings(WORK, 2, quick=False)} == {
        "2 x 1",
        "1 x 1",
        "1 x 2",
    }


def test_the_last_line_of_a_script_is_its_result() -> None:
    assert read_rounds('loading\nround 1\n{"round_s": [2.5, 1]}\n') == [2.5, 1.0]
    for text in ("", "Traceback\nKeyError: 'x'", '{"other": 1}', "3"):
        with pytest.raises(PeerFailed):
            read_rounds(text)


def test_the_first_round_warms_up_and_is_not_counted() -> None:
    tiny = replace(WORK, num_processes=2)
    assert len(Peer("benchmarks.peers.bare_loop").run(tiny)) == tiny.num_rounds - 1


def test_a_script_that_ends_early_says_why() -> None:
    with pytest.raises(PeerFailed, match="No module named"):
        Peer("benchmarks.peers.no_such_engine").run(WORK)


def test_a_setting_that_takes_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_runs, "_TIMEOUT_S", 0.01)
    with pytest.raises(PeerFailed, match="no result after"):
        Peer("benchmarks.peers.bare_loop").run(WORK)


def test_an_environment_is_made_once_and_anew_for_other_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = ["echo no such package >&2; exit 1"]

    def create(folder: Path, **_: object) -> None:
        python = folder / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text("#!/bin/sh\n" + pip[0])
        python.chmod(0o755)

    monkeypatch.setattr(peer_runs, "FOLDER", tmp_path)
    monkeypatch.setattr(venv, "create", create)
    with pytest.raises(CannotRun, match="no such package"):
        python_of(("peer==0",))
    pip[0] = "exit 0"
    python = python_of(("peer==0",))  # what failed is tried again
    pip[0] = "exit 1"
    assert python_of(("peer==0",)) == python
    with pytest.raises(CannotRun):
        python_of(("peer==1",))
