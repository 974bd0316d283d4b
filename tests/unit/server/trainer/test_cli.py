import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.cli import run_cli
from fedge.errors import RefineError
from fedge.training.local import LocalTrainer
from server.refine import GrpcRefiner, InProcessRefiner
from server.settings import RefineConfig
from server.trainer.cli import app
from server.trainer.spec import RefineSpec
from tests.tiny_task import TinyTask
from tests.trainer_process import TrainerProcess, at_first_progress

TASK = TinyTask()
TRAINER = LocalTrainer(TASK)
WEIGHTS = TRAINER.initial_weights(0)


def _refiner(address: str, spec: RefineSpec, **options: Any) -> GrpcRefiner:
    config = RefineConfig(trainer=address, **options)
    return GrpcRefiner(config, "run", TRAINER.layout, spec)


def _run(*args: str) -> object:
    with pytest.raises(SystemExit) as ended:
        run_cli(app, list(args))
    return ended.value.code


def test_check_says_what_would_be_served_and_serves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trainer.toml"
    file.write_text('address = "127.0.0.1:4444"\n[task]\nname = "tests.tiny_task:TinyTask"\n')
    assert _run("--config", str(file), "--check") == 0
    assert "task tiny, address 127.0.0.1:4444" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("adress=x", "adress: unknown key; did you mean 'address'?"),
        ("address=0.0.0.0:1", "set tls.cert, tls.key and token_file"),
        ("task.name=nothing:here", "nothing:here"),
        ("max_model_bytes=0", "max_model_bytes: must be >= 4"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_status_2(
    override: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run("--set", override, "--check") == 2
    err = capfd.readouterr().err
    assert text in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_soon_even_in_the_middle_of_a_refinement(
    number: signal.Signals, tmp_path: Path
) -> None:
    with TrainerProcess(tmp_path / "log", "task.options.loss_s=0.02") as trainer:
        refiner = _refiner(trainer.wait_ready(), RefineSpec(steps=100_000), restart_s=0)
        with (
            at_first_progress(lambda: trainer.process.send_signal(number)) as stopped_at,
            pytest.raises(RefineError, match="the trainer at"),
        ):
            refiner.refine(WEIGHTS, round=1, deadline_s=120)
        assert trainer.process.wait(30) == 0
        assert time.monotonic() - stopped_at[0] < 10
        assert "Traceback" not in trainer.output
        assert "trainer stopped" in trainer.output


@pytest.mark.slow
def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with TrainerProcess(tmp_path / "log", f"address={address}") as trainer:
            assert trainer.process.wait(60) == 2
            mesh, error = trainer.output.splitlines()
            assert "mesh: pipeline 1 × replicate 1 × shard 1 × tensor 1" in mesh
            assert error.startswith(f"error: address: cannot serve on {address}: ")


@pytest.mark.slow
def test_two_ranks_under_torchrun_equal_one_process_and_idle_longer_than_a_collective_may(
    tmp_path: Path,
) -> None:
    timeout_s = 2
    settings = f"collective_timeout_s={timeout_s}"
    spec = RefineSpec(learning_rate=0.1, batch_size=7, steps=20)
    with TrainerProcess(tmp_path / "log", settings, ranks=2) as trainer:
        address = trainer.wait_ready()
        for round in range(3):
            refinement = _refiner(address, spec).refine(WEIGHTS, round=round, deadline_s=60)
            expected = InProcessRefiner(TASK, spec).refine(WEIGHTS, round=round, deadline_s=60)
            np.testing.assert_allclose(refinement.weights, expected.weights, atol=1e-5)
            if round == 0:
                time.sleep(2.1 * timeout_s)  # what is tested: nothing happens for this long
        wild = _refiner(address, RefineSpec(learning_rate=1e38, steps=20))
        with pytest.raises(RefineError, match="not finite"):
            wild.refine(WEIGHTS, round=4, deadline_s=60)
        _refiner(address, spec).refine(WEIGHTS, round=5, deadline_s=60)
        trainer.process.send_signal(signal.SIGTERM)
        trainer.process.wait(30)
        assert "trainer stopped" in trainer.output
        assert "out of step" not in trainer.output


@pytest.mark.slow
def test_a_lost_rank_is_a_refine_error_and_torchrun_starts_all_anew(tmp_path: Path) -> None:
    settings = ("collective_timeout_s=20", "task.options.loss_s=0.02")
    with TrainerProcess(tmp_path / "log", *settings, ranks=2, restarts=1) as trainer:
        refiner = _refiner(trainer.wait_ready(), RefineSpec(steps=100_000), restart_s=0)
        with (
            at_first_progress(trainer.kill_last_rank) as killed_at,
            pytest.raises(RefineError, match="the trainer at"),
        ):
            refiner.refine(WEIGHTS, round=1, deadline_s=120)
        assert time.monotonic() - killed_at[0] < 15
        address = trainer.wait_ready(times=2)
        _refiner(address, RefineSpec(steps=3)).refine(WEIGHTS, round=1, deadline_s=60)


@pytest.mark.slow
def test_a_rank_that_hangs_costs_the_round_its_deadline_and_ends_the_others(
    tmp_path: Path,
) -> None:
    settings = ("collective_timeout_s=3", "task.options.loss_s=0.02")
    with TrainerProcess(tmp_path / "log", *settings, ranks=2) as trainer:
        refiner = _refiner(trainer.wait_ready(), RefineSpec(steps=100_000), restart_s=0)
        first, last = trainer.ranks
        with (
            at_first_progress(lambda: os.kill(last, signal.SIGSTOP)),
            pytest.raises(RefineError, match="the trainer at"),
        ):
            refiner.refine(WEIGHTS, round=1, deadline_s=5)
        deadline = time.monotonic() + 30
        while _runs(first):
            assert time.monotonic() < deadline, trainer.output
            time.sleep(0.05)
        assert "another rank of the trainer was lost" in trainer.output


@pytest.mark.slow
def test_ranks_whose_torchrun_was_killed_end_by_themselves(tmp_path: Path) -> None:
    with TrainerProcess(tmp_path / "log", ranks=2) as trainer:
        trainer.wait_ready()
        ranks = trainer.ranks
        try:
            trainer.process.kill()
            trainer.process.wait(30)
            deadline = time.monotonic() + 30
            while any(_runs(each) for each in ranks):
                assert time.monotonic() < deadline, trainer.output
                time.sleep(0.05)
        finally:
            for each in filter(_runs, ranks):
                os.kill(each, signal.SIGKILL)


def _runs(process: int) -> bool:
    """Tell whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
