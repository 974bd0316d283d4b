"""Attacks are chosen by name, and nobody but the simulation can."""

import ast
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from simulation.attacks.methods import attack_names, check_attack, make_attacks
from simulation.settings import AttackConfig

ROOT = Path(__file__).parents[4]
ISSUE = {"label-flip", "sign-flip", "scale", "gaussian", "ipm", "alie", "nan", "examples"}


def test_the_issues_attacks_are_there() -> None:
    assert set(attack_names()) == ISSUE


@pytest.mark.parametrize("name", ["none", *sorted(ISSUE)])
def test_an_attack_is_either_on_data_or_on_updates(name: str) -> None:
    made = make_attacks(AttackConfig(name=name))
    assert (made.data is not None) == (name == "label-flip")
    assert (made.update is not None) == (name not in ("none", "label-flip"))


def test_an_unknown_attack_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"attack\.name: must be one of none, alie, .*'sing'"):
        check_attack(AttackConfig(name="sing"))


def test_nothing_that_is_deployed_imports_attacks() -> None:
    importing = [
        path
        for package in ("protos", "fedge", "aggregation", "edge_client", "server")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if module.split(".")[0] == "simulation"
    ]
    assert not importing
