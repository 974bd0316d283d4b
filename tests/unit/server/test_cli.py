"""The command line of fedge-server."""

from pathlib import Path

import pytest

from fedge.cli import run_cli
from server.cli import app


def status_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as caught:
        run_cli(app, list(arguments))
    return caught.value.code


def test_check_says_that_a_configuration_is_fine_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "server.toml"
    file.write_text('run_dir = "run"\n[rounds]\nnum_rounds = 3\n')
    assert status_of("--config", str(file), "--check") == 0
    assert f"task digits, run folder {tmp_path / 'run'}" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rounds.num_rounds=0", "rounds.num_rounds: must be >= 1"),
        ("rounds.num_round=3", "did you mean 'num_rounds'?"),
        ("task.name=nothing:here", "task.name: "),
        ("registry.address=0.0.0.0:9093", "set tls.cert and tls.key"),
        ("aggregation.aggregator=none", "aggregation.aggregator: must be one of bounded-mean, "),
        ("aggregation.server_optimizer=none", "server_optimizer: must be one of fedadagrad, "),
        ("refine.objective=none", "refine.objective: must be one of anchored, distill, "),
        ("refine.augmentation=affine", "affine varies images [C, H, W]; task digits has inputs of"),
        (
            "refine.augmentation=task",
            "needs augment(inputs, generator), which task digits does not",
        ),
        ("metrics_address=here", "metrics_address: must be host:port"),
        ("task.options.seed=one", "digits: seed must be a whole number"),
    ],
)
def test_a_wrong_key_is_one_line_and_status_2(
    override: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("--set", override, "--check") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected in lines[0]


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    printed = capsys.readouterr().out
    for option in ("--config", "--set", "--check", "--exit-when-done"):
        assert option in printed
