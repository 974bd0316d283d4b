"""What central privacy refuses, what it adds to rounds, and that its account never restarts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedge.config import build
from fedge.errors import CheckpointError, ConfigError
from fedge.privacy.accounting import Spend, epsilon
from fedge.privacy.noise import Draws
from server.central_privacy import (
    MEMORY,
    NoiseLog,
    account_in,
    charge,
    epsilon_central,
    noise_by_round,
    noise_of_round,
    open_account,
)
from server.checkpoint import CheckpointStore
from server.federation import RunSummary, run_federation
from server.settings import CentralPrivacyConfig, ServerConfig
from tests.unit.server.fake_grid import (
    Asked,
    Client,
    FakeGrid,
    TinyTask,
    delta_of,
    honest,
    silent,
    update_of,
)
from tests.unit.server.scripted_rounds import configure, start_weights

ON = CentralPrivacyConfig(noise_multiplier=2.0, clip_norm=0.05)
OFF = CentralPrivacyConfig()
SECTION = {"noise_multiplier": 2.0, "clip_norm": 0.05}
PRIVATE = {"aggregator": "private-mean"}
CLIENTS: dict[int, Client] = dict.fromkeys(range(1, 8), honest)


def zero(asked: Asked) -> RecordDict:
    """Answer that nothing was learnt: what then moves the model is noise."""
    return update_of(asked, np.zeros(3, np.float32))


def noisy(num_rounds: int = 4, **section: Any) -> ServerConfig:
    tree = {
        "rounds": {"num_rounds": num_rounds, "cohort_size": 5},
        "aggregation": PRIVATE,
        "central_privacy": {**SECTION, **section},
        "evaluate": {"every_rounds": 0},
    }
    return build(ServerConfig, tree)


class Killed(BaseException):
    """Ends the process as far as a test can without ending the tests."""


def private(run_dir: Path, num_rounds: int = 4, **sections: Any) -> ServerConfig:
    rounds = {"num_rounds": num_rounds, "cohort_size": 5, "deadline_s": 0.3, "quorum": 0.6}
    chosen = {"aggregation": PRIVATE, "central_privacy": SECTION, **sections}
    return configure(run_dir, rounds, **chosen)


def run(config: ServerConfig, grid: FakeGrid | None = None) -> RunSummary:
    grid = grid or FakeGrid(CLIENTS)
    return run_federation(grid, config, task=TinyTask(), draws=Draws.seeded)


def spent(num_rounds: int, noise_multiplier: float = 2.0, delta: float = 1e-5) -> float:
    """Return what the devices' own accountant says of so many rounds."""
    return epsilon([Spend(noise_multiplier, 1.0, 1)] * num_rounds, delta)


def reported(summary: RunSummary) -> list[float | None]:
    return [line["epsilon_central"] for line in summary.rounds]


def test_epsilon_grows_with_every_round_as_the_accountant_says(tmp_path: Path) -> None:
    summary = run(private(tmp_path))
    found = reported(summary)
    assert found == pytest.approx([spent(n) for n in range(5)])
    assert found[0] == 0.0
    assert np.all(np.diff(np.array(found, np.float64)) > 0)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epsilon_central"] for line in lines] == found


def test_a_round_is_the_noised_sum_over_the_expected_cohort(tmp_path: Path) -> None:
    clients: dict[int, Client] = {1: honest, 2: honest, 3: honest, 4: silent, 5: silent}
    summary = run(private(tmp_path, num_rounds=1), FakeGrid(clients))
    total = np.zeros(3)
    for node in (1, 2, 3):
        delta = delta_of(node, 1, 3).astype(np.float64)
        total += delta * min(1.0, 0.05 / float(np.linalg.norm(delta)))
    noise = 2.0 * 0.05 * Draws.seeded(1).normal(3).numpy()
    learnt = summary.weights - start_weights()
    np.testing.assert_allclose(learnt, (total + noise) / 5, rtol=1e-4, atol=1e-7)


def test_without_it_there_is_no_epsilon(tmp_path: Path) -> None:
    summary = run(configure(tmp_path, {"num_rounds": 2}))
    assert reported(summary) == [None, None, None]


def test_a_round_without_quorum_costs_nothing(tmp_path: Path) -> None:
    def once(asked: Any) -> Any:
        return None if asked.round == 2 else honest(asked)

    clients: dict[int, Client] = dict.fromkeys(range(1, 6), once)
    summary = run(private(tmp_path, num_rounds=3), FakeGrid(clients))
    assert [line["applied"] for line in summary.rounds] == [False, True, False, True]
    assert reported(summary) == pytest.approx([0.0, spent(1), spent(1), spent(2)])


def test_a_round_that_fails_after_its_noise_was_drawn_stays_spent(tmp_path: Path) -> None:
    overflowing = {
        "aggregation": {**PRIVATE, "learning_rate": 1e38},
        "central_privacy": {"noise_multiplier": 2.0, "clip_norm": 1e6},
    }
    summary = run(private(tmp_path, num_rounds=1, **overflowing))
    assert summary.rounds[-1]["applied"] is False
    assert reported(summary) == pytest.approx([0.0, spent(1)])


def test_outside_simulation_nobody_can_repeat_the_noise(tmp_path: Path) -> None:
    one, other = (
        run_federation(FakeGrid(CLIENTS), private(tmp_path / name, 1), task=TinyTask())
        for name in ("one", "other")
    )
    assert one.weights.tobytes() != other.weights.tobytes()


def test_the_account_goes_on_after_a_kill(tmp_path: Path) -> None:
    whole = run(private(tmp_path / "whole"))
    grid = FakeGrid(CLIENTS)

    def faults(operation: str) -> None:
        if operation == "pull" and grid.asked[-1][0] == 3:
            raise Killed

    grid.faults = faults
    with pytest.raises(Killed):
        run(private(tmp_path / "killed"), grid)
    resumed = run(private(tmp_path / "killed"))
    assert resumed.resumed_from == 2
    assert reported(resumed) == reported(whole)
    assert resumed.weights.tobytes() == whole.weights.tobytes()


def test_the_account_travels_beside_a_lossy_downlinks_vector(tmp_path: Path) -> None:
    chosen = {"aggregation": {**PRIVATE, "downlink_codec": "int8"}}
    run(private(tmp_path, num_rounds=2, **chosen))
    resumed = run(private(tmp_path, num_rounds=3, **chosen))
    assert resumed.resumed_from == 2
    assert reported(resumed) == pytest.approx([spent(n) for n in range(4)])


def test_a_published_round_whose_checkpoint_is_damaged_stays_spent(tmp_path: Path) -> None:
    run(private(tmp_path, num_rounds=3))
    (tmp_path / "checkpoints" / "round-000003" / "weights.f32").write_bytes(b"")
    resumed = run(private(tmp_path, num_rounds=3))
    assert resumed.resumed_from == 2
    assert resumed.rounds[-1]["epsilon_central"] == pytest.approx(spent(4))
    stored = CheckpointStore(tmp_path / "checkpoints").latest()
    assert stored is not None
    assert stored.memory[MEMORY]["spends"] == [[2.0, 4]]


def test_lost_rounds_are_charged_with_the_noise_that_they_drew_whatever_is_configured_now(
    tmp_path: Path,
) -> None:
    section = {**SECTION, "noise_split": 100.0}
    config = private(tmp_path, num_rounds=3, central_privacy=section)
    run(config)
    drawn = noise_by_round(config)
    for round in (2, 3):
        (tmp_path / "checkpoints" / f"round-00000{round}" / "weights.f32").write_bytes(b"")
    other = {"noise_multiplier": 5.0, "clip_norm": 0.05}
    resumed = run(private(tmp_path, num_rounds=12, central_privacy=other))
    assert resumed.resumed_from == 1
    spends = [Spend(float(each), 1.0, 1) for each in [*drawn, *[5.0] * 11]]
    expected = epsilon(spends, 1e-5)
    assert resumed.rounds[-1]["epsilon_central"] == pytest.approx(expected, rel=1e-6)


def test_of_a_round_that_was_begun_twice_the_lesser_noise_counts(tmp_path: Path) -> None:
    noise_log = NoiseLog(tmp_path)
    assert noise_log.least(1) is None
    for round, noise in ((1, 3.0), (2, 0.5), (1, 2.0), (1, 4.0)):
        noise_log.note(round, noise)
    with (tmp_path / "central-noise.jsonl").open("a") as file:
        file.write('{"round": 1, "noi')
    assert noise_log.least(1) == 2.0
    assert noise_log.least(3) is None


def test_a_round_whose_noise_cannot_be_noted_draws_none(tmp_path: Path) -> None:
    (tmp_path / "central-noise.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot append to .*central-noise\.jsonl"):
        run(private(tmp_path, num_rounds=1))


def test_less_noise_and_another_delta_after_a_resume_are_accounted(tmp_path: Path) -> None:
    run(private(tmp_path, num_rounds=2))
    changed = {"noise_multiplier": 1.0, "clip_norm": 0.05, "delta": 1e-6}
    resumed = run(private(tmp_path, num_rounds=3, central_privacy=changed))
    both = [Spend(2.0, 1.0, 2), Spend(1.0, 1.0, 1)]
    assert resumed.rounds[-1]["epsilon_central"] == pytest.approx(epsilon(both, 1e-6))


def test_a_run_whose_first_rounds_were_not_noised_cannot_become_private(tmp_path: Path) -> None:
    run(configure(tmp_path, {"num_rounds": 1}))
    with pytest.raises(ConfigError, match=r"noise_multiplier: the 1 rounds .* no ε can be said"):
        run(private(tmp_path))


def test_an_account_is_given_up_with_the_noise() -> None:
    memory = charge(open_account(ON, {"private-mean": {}}, 0), 2.0)
    assert epsilon_central(memory) == pytest.approx(spent(1))
    assert account_in(memory) == {MEMORY: memory[MEMORY]}
    without = open_account(OFF, memory, 1)
    assert without == {"private-mean": {}}
    assert charge(without, 2.0) == without
    with pytest.raises(ConfigError):
        open_account(ON, without, 1)


def test_charging_leaves_the_given_memory_alone() -> None:
    before = charge(open_account(ON, {}, 0), 2.0)
    charge(before, 2.0)
    assert epsilon_central(before) == pytest.approx(spent(1))


@given(
    num_rounds=st.integers(1, 60), split=st.floats(1e-3, 1e3), noise_multiplier=st.floats(0.5, 50)
)
def test_however_the_noise_is_split_all_rounds_together_cost_the_same(
    num_rounds: int, split: float, noise_multiplier: float
) -> None:
    config = noisy(num_rounds, noise_split=split, noise_multiplier=noise_multiplier)
    memory = open_account(config.central_privacy, {}, 0)
    for round in range(1, num_rounds + 1):
        memory = charge(memory, noise_of_round(config, round))
    even = spent(num_rounds, noise_multiplier)
    assert epsilon_central(memory) == pytest.approx(even, rel=1e-6)


def test_the_last_round_has_the_splits_multiple_of_the_first_ones_share() -> None:
    noise = [noise_of_round(noisy(5, noise_split=16.0), round) for round in range(1, 6)]
    shares = 1 / np.square(noise)
    np.testing.assert_allclose(shares[1:] / shares[:-1], 2.0)
    assert noise[0] > 2.0 > noise[-1]


def test_evenly_split_noise_is_the_configured_one_to_the_last_bit() -> None:
    assert set(noise_by_round(noisy(7)).tolist()) == {2.0}
    assert (
        noise_of_round(noisy(7, noise_split=4.0), 9)
        == noise_by_round(noisy(7, noise_split=4.0))[-1]
    )


def test_one_spend_says_what_many_rounds_of_their_own_noise_do() -> None:
    memory = open_account(ON, {}, 0)
    noise = [1.0, 3.0, 3.0, 0.7]
    for each in noise:
        memory = charge(memory, each)
    expected = epsilon([Spend(each, 1.0, 1) for each in noise], 1e-5)
    assert epsilon_central(memory) == pytest.approx(expected, rel=1e-9)


def test_rounds_draw_the_noise_that_they_are_charged_for(tmp_path: Path) -> None:
    section = {**SECTION, "noise_split": 9.0}
    config = private(tmp_path, num_rounds=3, central_privacy=section)
    summary = run(config, FakeGrid(dict.fromkeys(range(1, 6), zero)))
    noise = [noise_of_round(config, round) for round in (1, 2, 3)]
    drawn = sum(
        (each * 0.05 * Draws.seeded(round).normal(3).numpy() / 5)
        for round, each in enumerate(noise, start=1)
    )
    np.testing.assert_allclose(summary.weights - start_weights(), drawn, rtol=1e-4, atol=1e-6)
    stored = CheckpointStore(tmp_path / "checkpoints").latest()
    assert stored is not None
    assert stored.memory[MEMORY]["spends"] == [[each, 1] for each in noise]
    assert reported(summary)[-1] == pytest.approx(spent(3))


@pytest.mark.parametrize(
    ("key", "tree"),
    [
        ("aggregation.aggregator", {"aggregation": {"aggregator": "bounded-mean"}}),
        ("aggregation.aggregator", {"aggregation": {"aggregator": "krum"}}),
        ("aggregation.max_staleness", {"aggregation": {**PRIVATE, "max_staleness": 1}}),
        ("rounds.cohort_size", {"rounds": {"cohort_size": 0}}),
        ("evaluate.every_rounds", {"evaluate": {"every_rounds": 1}}),
        ("central_privacy.noise_multiplier", {"central_privacy": {"noise_multiplier": 0.0}}),
    ],
)
def test_what_breaks_the_guarantee_is_refused_by_its_key(key: str, tree: dict[str, Any]) -> None:
    good = {
        "aggregation": PRIVATE,
        "central_privacy": SECTION,
        "rounds": {"cohort_size": 5},
        "evaluate": {"every_rounds": 0},
    }
    assert build(ServerConfig, good).central_privacy == ON
    with pytest.raises(ConfigError) as refused:
        build(ServerConfig, {**good, **tree})
    assert refused.value.key == key


def test_the_default_aggregator_is_told_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r'set aggregation\.aggregator = "private-mean"'):
        build(ServerConfig, {"central_privacy": {"noise_multiplier": 1.0}})
