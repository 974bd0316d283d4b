"""A device's own labels, against two versions whose answers are known."""

from typing import cast

import numpy as np
import pytest

from edge_client.inference import Engine
from edge_client.local_voice import MAX_EXAMPLES, LocalVoice
from edge_client.settings import ModelsConfig
from fedge.errors import InvalidInput, StoreError
from fedge.task import Examples, Split

CLASSES = 4


class StandIn:
    """An engine that looks its answers up: the input is the position in a table of outputs."""

    input_dtype = np.dtype(np.float32)

    def __init__(self, outputs: np.ndarray) -> None:
        self.outputs = outputs

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        if inputs.shape != (1,):
            raise InvalidInput("one example at a time, please")
        row: np.ndarray = self.outputs[int(inputs[0])]
        return row


class Labels:
    def __init__(self, targets: np.ndarray, inputs: np.ndarray | None = None) -> None:
        self.examples = Examples(
            np.arange(len(targets))[:, None] if inputs is None else inputs, targets
        )

    def labelled(self, split: Split) -> Examples:
        assert split == "holdout"
        return self.examples


def engine(outputs: np.ndarray) -> Engine:
    return cast("Engine", StandIn(outputs))


def classifier(targets: np.ndarray, num_right: int) -> Engine:
    """Return an engine that is right for the first so many examples."""
    said = np.where(np.arange(len(targets)) < num_right, targets, (targets + 1) % CLASSES)
    return engine(np.eye(CLASSES, dtype=np.float32)[said])


def voice(labels: Labels, max_metric_drop: float = 0.1, min_labelled: int = 30) -> LocalVoice:
    return LocalVoice(
        labels, ModelsConfig(max_metric_drop=max_metric_drop, min_labelled=min_labelled)
    )


TARGETS = np.arange(100) % CLASSES


def test_a_version_that_is_surely_worse_is_named_with_both_figures() -> None:
    found = voice(Labels(TARGETS)).compare(classifier(TARGETS, 60), classifier(TARGETS, 90))
    assert found is not None
    assert (found.metric, found.metric_before, found.num_labelled) == (0.6, 0.9, 100)
    assert found.reason == (
        "on 100 labelled samples of this device its metric is 0.600, that of the version before "
        "0.900"
    )


@pytest.mark.parametrize("new_right", [81, 90, 100])
def test_a_version_that_is_as_good_or_little_worse_may_serve(new_right: int) -> None:
    found = voice(Labels(TARGETS)).compare(classifier(TARGETS, new_right), classifier(TARGETS, 90))
    assert found is not None
    assert found.reason == ""


def test_a_drop_that_may_be_chance_is_not_held_against_a_version() -> None:
    targets = np.zeros(30, np.int64)
    right, wrong = np.eye(CLASSES, dtype=np.float32)[[0, 1]]
    # 8 examples got worse and 4 better: 13 points lost, well within what chance does.
    new = engine(np.array([wrong] * 8 + [right] * 22))
    old = engine(np.array([right] * 26 + [wrong] * 4))
    found = voice(Labels(targets)).compare(new, old)
    assert found is not None
    assert found.metric_before - found.metric > 0.1
    assert found.reason == ""


def test_too_few_labels_say_nothing() -> None:
    targets = TARGETS[:29]
    worse, better = classifier(targets, 0), classifier(targets, 29)
    assert voice(Labels(targets)).compare(worse, better) is None
    assert voice(Labels(targets), min_labelled=29).compare(worse, better) is not None


def test_zero_does_not_look() -> None:
    worse, better = classifier(TARGETS, 0), classifier(TARGETS, 100)
    assert voice(Labels(TARGETS), max_metric_drop=0.0).compare(worse, better) is None


def test_only_the_newest_labels_are_asked() -> None:
    targets = np.arange(MAX_EXAMPLES + 200) % CLASSES
    found = voice(Labels(targets)).compare(
        classifier(targets, 200), classifier(targets, len(targets))
    )
    assert found is not None
    assert (found.metric, found.num_labelled) == (0.0, MAX_EXAMPLES)


def test_values_are_compared_by_the_share_of_their_spread_that_is_explained() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=200).astype(np.float32)
    good = targets + rng.normal(0, 0.1, 200)
    bad = targets + rng.normal(0, 0.8, 200)
    found = voice(Labels(targets)).compare(engine(bad[:, None]), engine(good[:, None]))
    assert found is not None
    expected = 1 - np.mean((bad - targets) ** 2) / np.var(targets)
    assert found.metric == pytest.approx(expected, rel=1e-5)
    assert found.reason != ""


def test_a_version_that_answers_nan_is_worse() -> None:
    targets = np.arange(40, dtype=np.float32)
    nothing = engine(np.full((40, 1), np.nan, np.float32))
    found = voice(Labels(targets)).compare(nothing, engine(targets[:, None]))
    assert found is not None
    assert found.reason != ""


def test_sequences_count_the_share_of_places_that_are_right() -> None:
    targets = np.tile(TARGETS, (2, 1)).T
    half = np.stack([TARGETS, (TARGETS + 1) % CLASSES], axis=1)
    eye = np.eye(CLASSES, dtype=np.float32)
    found = voice(Labels(targets)).compare(engine(eye[half]), engine(eye[targets]))
    assert found is not None
    assert (found.metric, found.metric_before) == (0.5, 1.0)


@pytest.mark.parametrize(
    "labels",
    [
        Labels(np.zeros((40, 3), np.int64)),  # not the outputs' shape
        Labels(np.zeros((40, 7), np.float32)),
        Labels(np.ones(40, np.float32)),  # no spread to explain
        Labels(np.zeros(40, np.int64), inputs=np.zeros((40, 2))),  # not what the model takes
    ],
)
def test_labels_that_do_not_fit_say_nothing(labels: Labels) -> None:
    outputs = engine(np.zeros((40, 1), np.float32))
    assert voice(labels).compare(outputs, outputs) is None


def test_a_store_that_cannot_be_read_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Labels):
        def labelled(self, split: Split) -> Examples:
            raise StoreError("the disk is gone")

    better = classifier(TARGETS, 100)
    assert voice(Broken(TARGETS)).compare(better, better) is None
    assert "the disk is gone" in caplog.text
