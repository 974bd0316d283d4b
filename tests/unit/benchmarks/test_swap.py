"""What `swap` counts as mixed, and what it says where there is no converter."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import swap_versions
from benchmarks.harness import CannotRun
from benchmarks.swap import Expected
from benchmarks.swap_versions import architecture

ANSWERS = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


def test_an_answer_must_be_that_of_the_version_that_it_names() -> None:
    expected = Expected(np.zeros((2, 3), np.float32), {"a": ANSWERS, "b": ANSWERS + 1})
    assert expected.fits(1, ANSWERS[1], "a")
    assert expected.fits(1, ANSWERS[1] * np.float32(1 + 1e-6), "a")
    assert not expected.fits(1, ANSWERS[1], "b")
    assert not expected.fits(0, ANSWERS[1], "a")
    assert not expected.fits(0, (2 * ANSWERS[0] + 1) / 2, "a")  # half of each
    assert not expected.fits(0, ANSWERS[0], "c")
    assert not expected.fits(0, np.full(2, np.nan, np.float32), "a")


def test_without_a_converter_it_cannot_run_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_versions, "FOLDER", tmp_path)
    monkeypatch.setattr(swap_versions, "find_converter", lambda: None)
    with pytest.raises(CannotRun, match="make convert-env"):
        architecture(8)
