"""What a run keeps from its start: what is tried before it, what that is worth, what is kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from fedge.config import build, to_tree
from fedge.errors import CheckpointError, ConfigError, ModelError
from fedge.settings import TaskConfig
from fedge.training.local import LocalTrainer
from server.checkpoint import Checkpoint, CheckpointStore
from server.settings import ServerConfig
from server.tuner.start.price import Price
from server.tuner.start.rating import choose, rate, table
from server.tuner.start.search import StartSearch
from server.tuner.start.space import apply_start, as_config, parse_start
from server.tuner.start.study import StartStudy
from tests.tiny_task import TinyTask

TINY = "tests.tiny_task:TinyTask"
WIDTHS = [1, 8, 32, 256]


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


def free(_task: TaskConfig) -> Price:
    return Price(1e-6, 1000)


class Exploding(TinyTask):
    """Cannot be trained at the largest width."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = super().loss(outputs, targets)
        return losses / 0 if self.width == max(WIDTHS) else losses


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


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"learning_rate": 0.2}},
        {"aggregation": {"learning_rate": 0.5}},
        {"rounds": {"num_rounds": 99}},
        {"seed": 5},
        {"tuner": {"virtual_rounds": 5}},
        {"central_privacy": {"noise_multiplier": 0.01}},
    ],
)
def test_whatever_losses_depend_on_begins_a_new_study(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    tree = to_tree(noisy(tmp_path, [1.0, 4.0]))
    changed = {
        key: {**tree[key], **value} if isinstance(value, dict) else value
        for key, value in change.items()
    }
    before, after = (build(ServerConfig, each) for each in (tree, {**tree, **changed}))
    StartSearch(before, Till()).run()
    space, _ = parse_start(after)
    assert len(StartStudy(before, space).tried()) == 2
    assert StartStudy(after, space).tried() == []


def test_the_sampler_is_told_todays_prices(tmp_path: Path) -> None:
    config = configure(tmp_path)
    StartSearch(config, Till()).run()
    dear = replace(config.tuner.start, size_price=1.0)
    config = replace(config, tuner=replace(config.tuner, start=dear))
    study = StartStudy(config, parse_start(config)[0])
    values = {trial.params["width"]: trial.value for trial in study.trials(study.tried())}
    rated = {each.values["width"]: each.score for each in rate(study.tried(), dear)}
    assert values == rated
    assert max(rated, key=lambda width: rated[width]) == 1


def test_what_was_in_the_way_is_tried_again_the_next_time(tmp_path: Path) -> None:
    rated = StartSearch(configure(tmp_path), Till(lambda width: width > 8)).run()
    assert sorted(each.values["width"] for each in rated) == [1, 8]
    till = Till()
    rated = StartSearch(configure(tmp_path), till).run()
    assert sorted(till.asked) == [32, 256]
    assert sorted(each.values["width"] for each in rated) == WIDTHS


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


def test_a_candidate_whose_training_fails_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(tmp_path)
    config = replace(config, task=TaskConfig(f"{__name__}:Exploding"))
    rated = StartSearch(config, Till()).run()
    assert sorted(each.values["width"] for each in rated) == [1, 8, 32]
    assert "{'width': 256} cannot be had: training failed" in caplog.text


def test_options_that_change_what_is_held_out_are_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rated = StartSearch(configure(tmp_path, {"num_proxy": [40, 60]}, candidates=2), free).run()
    assert [each.values for each in rated] == [{"num_proxy": 40}]
    assert "changes which examples are held out" in caplog.text


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
        (
            {"width": {"low": 0.5, "high": 9}},
            1,
            r"^tuner\.start\.space\.width: must have whole ends",
        ),
        ({"width": WIDTHS}, 0, r"^tuner\.virtual_rounds: must be above 0"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_its_key(
    tmp_path: Path, space: dict[str, Any], rounds: int, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        StartSearch(configure(tmp_path, space, rounds), Till())


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("train.personal_layers", {"train": {"personal_layers": ["3.*"]}}),
        (
            "refine.held_out",
            {"refine": {"trainer": "in-process", "held_out": 0.0, "blends": [1.0]}},
        ),
    ],
)
def test_where_held_out_losses_would_say_nothing_it_is_refused(
    tmp_path: Path, key: str, section: dict[str, Any]
) -> None:
    config = build(ServerConfig, {**to_tree(configure(tmp_path)), **section})
    with pytest.raises(ConfigError, match=rf"^{key}: must be"):
        StartSearch(config, Till())


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot make .*/file/run"):
        StartSearch(configure(tmp_path / "file" / "run"), Till())


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
