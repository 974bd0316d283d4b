"""Data settings: every value checks itself and names its key."""

from pathlib import Path
from typing import Any

import pytest

from fedge.config import build, load, to_tree
from fedge.errors import ConfigError
from simulation.partition.settings import DataConfig
from simulation.settings import SimulateConfig


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"alpha": 0}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"shards_per_client": 0}, "shards_per_client"),
        ({"size_sigma": -0.1}, "size_sigma"),
        ({"mean_examples": 0}, "mean_examples"),
        ({"shift": "sideways"}, "shift"),
        ({"shift_strength": -1}, "shift_strength"),
        ({"min_examples": 0}, "min_examples"),
        ({"missing": "ignore"}, "missing"),
        ({"input_dtype": "complex64"}, "input_dtype"),
        ({"target": ""}, "target"),
        ({"inputs": ["a", "a"]}, "inputs"),
        ({"inputs": ["target"]}, "inputs"),
        ({"partitioner": "iid"}, "partitioner"),
        ({"alfa": 1.0}, "alfa"),
    ],
)
def test_a_wrong_value_is_named_by_its_dotted_key(section: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.{key}: "):
        build(SimulateConfig, {"data": section})


def test_a_relative_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "simulate.toml"
    path.write_text('source = "rows.csv"\n')
    assert load(DataConfig, path).source == str(tmp_path / "rows.csv")
    assert load(DataConfig, path, ["source=/a/b.npz"]).source == "/a/b.npz"


@pytest.mark.parametrize("source", ["", "task", "hf:org/name"])
def test_a_name_is_no_path(source: str, tmp_path: Path) -> None:
    path = tmp_path / "simulate.toml"
    path.write_text(f'source = "{source}"\n')
    assert load(DataConfig, path).source == source


def test_it_survives_the_way_to_another_process() -> None:
    config = DataConfig(source="task", partitioner="shards", inputs=("a",), alpha=0.25)
    assert build(DataConfig, to_tree(config)) == config
