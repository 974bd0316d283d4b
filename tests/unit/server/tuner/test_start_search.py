"""What a run keeps from its start: what is tried before it, what that is worth, what is kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.config import build
from fedge.errors import ConfigError, ModelError
from fedge.settings import TaskConfig
from fedge.training.local import LocalTrainer
from server.checkpoint import Checkpoint, CheckpointStore
from server.cli import main
from server.convert import INTERPRETER_VARIABLE, find_converter
from server.settings import ServerConfig
from server.tuner.model_price import Price, price_of
from server.tuner.settings import StartConfig
from server.tuner.start_rating import Rated, Tried, choose, rate, table
from server.tuner.start_search import StartSearch
from server.tuner.start_space import apply_start, as_config, parse_start
from server.tuner.start_study import StartStudy
from tests.tiny_task import TinyTask

TINY = "tests.tiny_task:TinyTask"
WIDTHS = [1, 8, 32, 256]
DIGITS = TaskConfig(options={"num_proxy": 20})


def configure(
    run_dir: Path, space: dict[str, Any] | None = None, virtual_rounds: int = 4, **model: Any
) -> ServerConfig:
    chosen = {"width": WIDTHS} if space is None else space
    wanted = {"sampler": "grid", "candidates": 4, "space": chosen, **model}
    tree = {
        "run_dir": str(run_dir),
        "task": {"name": TINY},
        "train": {"learning_rate": 0.3, "local_epochs": 2, "batch_size": 4},
        "tuner": {
            "clients": 3,
            "client_examples": 12,
            "virtual_rounds": virtual_rounds,
            "start": wanted,
        },
    }
    return build(ServerConfig, tree)


class Till:
    """Prices by width alone, and remembers what it was asked."""

    def __init__(self, fails: Callable[[int], bool] = lambda _: False) -> None:
        self.asked: list[int] = []
        self._fails = fails

    def __call__(self, task: TaskConfig) -> Price:
        width = task.options["width"]
        self.asked.append(width)
        if self._fails(width):
            raise ModelError("no such width")
        return Price(width * 1e-6, width * 100)


def test_every_size_is_tried_once_the_configured_one_first(tmp_path: Path) -> None:
    till = Till()
    rated = StartSearch(configure(tmp_path), till).run()
    assert till.asked[0] == 8
    assert sorted(till.asked) == WIDTHS
    assert [each.values["width"] for each in rated] == till.asked
    losses = {each.values["width"]: each.loss for each in rated}
    assert losses[32] < losses[1]  # one tanh cannot tell three corners apart


def test_a_search_that_was_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Cut(Till):
        def __call__(self, task: TaskConfig) -> Price:
            if len(self.asked) == 2:
                raise Killed
            return super().__call__(task)

    whole = StartSearch(configure(tmp_path / "whole"), Till()).run()
    first, second = Cut(), Till()
    with pytest.raises(Killed):
        StartSearch(configure(tmp_path / "cut"), first).run()
    assert StartSearch(configure(tmp_path / "cut"), second).run() == whole
    assert len(first.asked) == len(second.asked) == 2
    assert StartSearch(configure(tmp_path / "cut"), Till(lambda _: True)).run() == whole


def test_what_was_tried_under_other_hyperparameters_counts_for_nothing(tmp_path: Path) -> None:
    config, till = configure(tmp_path), Till()
    StartSearch(config, till).run()
    StartSearch(replace(config, train=replace(config.train, learning_rate=0.1)), till).run()
    assert len(till.asked) == 2 * len(WIDTHS)
    # What they are worth is computed anew from what was measured.
    dear = replace(config.tuner.start, size_price=1.0)
    rated = StartSearch(replace(config, tuner=replace(config.tuner, start=dear)), till).run()
    assert len(till.asked) == 2 * len(WIDTHS)
    assert max(rated, key=lambda each: each.score).values["width"] == 1


def test_sizes_that_cannot_be_had_are_left_out_but_the_configured_ones_must_be(
    tmp_path: Path,
) -> None:
    rated = StartSearch(configure(tmp_path / "a"), Till(lambda width: width == 32)).run()
    assert sorted(each.values["width"] for each in rated) == [1, 8, 256]
    with pytest.raises(ModelError, match="no such width"):
        StartSearch(configure(tmp_path / "b"), Till(lambda width: width == 8)).run()


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_range_is_searched_until_enough_were_tried(tmp_path: Path, sampler: str) -> None:
    space = {"width": {"low": 2, "high": 64, "log": True}}
    till = Till()
    StartSearch(configure(tmp_path, space, candidates=10, sampler=sampler), till).run()
    assert 8 <= len(till.asked) == len(set(till.asked)) <= 10
    assert all(2 <= width <= 64 for width in till.asked)


@pytest.mark.parametrize(
    ("space", "rounds", "expected"),
    [
        ({}, 1, r"^tuner\.start\.space: names no option of the task and not"),
        ({"height": [1, 2]}, 1, r"^tuner\.start\.space\.height: the task tiny has no option"),
        ({"bug": [True]}, 1, r"^tuner\.start\.space\.bug: the task tiny has no option"),
        ({"width": [16, 32]}, 1, r"^tuner\.start\.space\.width: does not hold width = 8"),
        ({"width": {"low": 4}}, 1, r"^tuner\.start\.space\.width: must be a list of choices"),
        ({"width": WIDTHS}, 0, r"^tuner\.virtual_rounds: must be above 0"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_its_key(
    tmp_path: Path, space: dict[str, Any], rounds: int, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        StartSearch(configure(tmp_path, space, rounds), Till())


def test_a_run_that_has_begun_has_its_sizes(tmp_path: Path) -> None:
    layout = LocalTrainer(TinyTask()).layout
    store = CheckpointStore(tmp_path / "checkpoints")
    store.commit(Checkpoint("run", 0, layout, np.zeros(layout.size, np.float32)))
    with pytest.raises(
        ConfigError, match=r"^run_dir: .* is at round 0 and keeps what it began with"
    ):
        StartSearch(configure(tmp_path), Till())


SPLIT = "central_privacy.noise_split"


def noisy(run_dir: Path, splits: list[float], configured: float = 1.0) -> ServerConfig:
    tree = {
        "run_dir": str(run_dir),
        "task": {"name": TINY},
        "rounds": {"num_rounds": 12, "cohort_size": 6},
        "train": {"learning_rate": 0.3, "local_epochs": 2, "batch_size": 4},
        "aggregation": {"aggregator": "private-mean"},
        "central_privacy": {
            "noise_multiplier": 3.0,
            "clip_norm": 0.3,
            "noise_split": configured,
        },
        "evaluate": {"every_rounds": 0},
        "tuner": {
            "clients": 4,
            "client_examples": 12,
            "virtual_rounds": 6,
            "start": {"space": {SPLIT: splits}, "sampler": "grid", "candidates": len(splits)},
        },
    }
    return build(ServerConfig, tree)


def test_noise_that_grows_towards_the_end_is_left_for_noise_that_falls(tmp_path: Path) -> None:
    rated = StartSearch(noisy(tmp_path, [0.01, 1.0, 30.0], configured=0.01), Till()).run()
    scores = {each.values[SPLIT]: each.score for each in rated}
    assert list(scores) == [0.01, 1.0, 30.0]
    assert 0 < scores[1.0] < scores[30.0]
    assert choose(rated).values == {SPLIT: 30.0}
    assert all(each.price is None for each in rated)
    assert as_config(choose(rated).values) == "[central_privacy]\nnoise_split = 30"
    assert table(rated)[0].split() == [SPLIT, "loss", "score", "+/-"]


def test_each_candidate_is_tried_under_several_draws_of_noise(tmp_path: Path) -> None:
    config = noisy(tmp_path, [1.0, 4.0])
    StartSearch(config, Till()).run()
    tried = StartStudy(config, parse_start(config)[0]).tried()
    losses = np.array([each.losses for each in tried])
    assert losses.shape == (2, config.tuner.start.draws, 10)
    assert len({tuple(draw) for draw in losses[0]}) == config.tuner.start.draws
    (rated,) = rate(tried, config.tuner.start)[1:]
    gains = np.log(losses[0].mean(axis=1)) - np.log(losses[1].mean(axis=1))
    assert rated.score == pytest.approx(gains.mean())
    assert rated.error > np.std(gains, ddof=1) / np.sqrt(len(gains)) > 0


def test_a_split_may_be_written_nested_and_beside_sizes(tmp_path: Path) -> None:
    config = noisy(tmp_path, [1.0, 2.0])
    space = {"width": [8, 16], "central_privacy": {"noise_split": [1.0, 2.0]}}
    start = replace(config.tuner.start, space=space)
    config = replace(config, tuner=replace(config.tuner, start=start))
    search = StartSearch(config, Till())
    assert search.has_sizes
    parameters, current = parse_start(config)
    assert [each.key for each in parameters] == ["width", SPLIT]
    assert current == {"width": 8, SPLIT: 1.0}
    chosen = apply_start(config, {"width": 16, SPLIT: 2.0})
    assert chosen.task.options == {"width": 16}
    assert chosen.central_privacy == replace(config.central_privacy, noise_split=2.0)
    with pytest.raises(ConfigError, match=r"^central_privacy\.noise_split: must be"):
        apply_start(config, {SPLIT: 0.0})


def test_noise_that_there_is_not_is_not_split(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^tuner\.start\.space\.central_privacy\.noise_split: cha"
    ):
        StartSearch(configure(tmp_path, {SPLIT: [1.0, 2.0]}), Till())


def sized(width: int, loss: float, latency_s: float, size_bytes: int) -> Tried:
    noise = np.linspace(-0.01, 0.01, 100)
    return Tried(
        {"width": width}, (tuple((loss + noise * width).tolist()),), Price(latency_s, size_bytes)
    )


def test_twice_the_latency_or_bytes_must_be_paid_for_by_the_loss() -> None:
    models = [
        sized(1, 1.0, 1e-6, 1000),
        sized(2, 1.0, 2e-6, 1000),
        sized(3, 1.0, 1e-6, 4000),
        Tried({"width": 4}),
        sized(5, 0.9, 2e-6, 2000),
    ]
    rated = rate(models, StartConfig(latency_price=0.05, size_price=0.02))
    scores = [each.score for each in rated]
    np.testing.assert_allclose(scores, [0, -0.05, -0.04, -np.log(0.9) - 0.07], atol=1e-12)
    assert choose(rated).values == {"width": 5}
    assert choose(rated[:3]) is rated[0]
    lines = table(rated)
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["5", "0.9000", "2.0", "2,000", "+0.035", "0.002"]


def test_a_gain_within_the_noise_changes_nothing() -> None:
    price = Price(1e-6, 1000)
    configured = Rated({"width": 1}, 1.0, price, 0.0, 0.0)
    assert choose([configured, Rated({"width": 2}, 0.9, price, 0.1, 0.06)]) is configured
    better = Rated({"width": 2}, 0.9, price, 0.1, 0.04)
    assert choose([configured, better]) is better
    unclear = Rated({"width": 3}, 0.8, price, 0.2, 0.2)
    assert choose([configured, unclear, better]) is better


def test_a_shipped_template_is_priced_as_it_is() -> None:
    price = price_of(DIGITS)
    files = TinyTask().edge_files()
    assert files is None
    assert 1e-7 < price.latency_s < 1e-2
    assert 20_000 < price.size_bytes < 100_000


@pytest.mark.slow
def test_a_wider_model_is_converted_and_costs_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_converter() is None:
        pytest.skip(f"no converter: run make convert-env, or set {INTERPRETER_VARIABLE}")
    options = {
        "run_dir": tmp_path,
        "tuner.start.space.width": [64, 512],
        "tuner.start.candidates": 2,
        "tuner.virtual_rounds": 2,
        "tuner.start.size_price": 5.0,
    }
    given = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    monkeypatch.setattr("sys.argv", ["fedge-server", "tune-start", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    head, small, large, *_, chosen = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["width", "loss"]
    assert (small.split()[0], large.split()[0]) == ("64", "512")
    sizes = [int(line.split()[3].replace(",", "")) for line in (small, large)]
    assert sizes[1] > 4 * sizes[0]
    assert chosen == "width = 64"


def test_without_a_converter_the_command_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.convert.find_converter", lambda: None)
    given = [f"run_dir={tmp_path / 'run'}", "--set", "tuner.start.space.width=[8, 64]"]
    monkeypatch.setattr("sys.argv", ["fedge-server", "tune-start", "--set", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "make convert-env" in capsys.readouterr().err
