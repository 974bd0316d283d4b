from pathlib import Path

import pytest

from fedge.errors import StoreError
from server.mqtt.prediction_file import Prediction, PredictionFile


def test_a_prediction_is_kept_once_across_restarts(tmp_path: Path) -> None:
    first, other = Prediction("a", 1, {"output": [1]}), Prediction("b", 1, {"output": [2]})
    with PredictionFile(tmp_path / "p.db") as file:
        assert file.keep([first, other, first]) == 2
    with PredictionFile(tmp_path / "p.db") as file:
        assert file.keep([first, Prediction("a", 2, {})]) == 1
        assert file.count() == 3


def test_a_file_that_cannot_be_used_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing"):
        PredictionFile(tmp_path / "missing" / "p.db")
