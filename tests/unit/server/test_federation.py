"""Whole runs on the embedded task, with real training where it matters."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from fedge.config import build
from fedge.errors import ConfigError, RefineError
from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.rng import stream_seed
from fedge.tasks.digits import Digits
from fedge.training.local import LocalTrainer
from server.checkpoint import CheckpointStore
from server.federation import run_federation
from server.settings import ServerConfig
from server.trainer.spec import Refinement
from tests.unit.server.fake_grid import Asked, Client, FakeGrid, TinyTask, honest, update_of

ROOT = Path(__file__).parents[3]


def trains(task: Digits, num_clients: int) -> Client:
    trainer = LocalTrainer(task)

    def client(asked: Asked) -> RecordDict:
        request = asked.request
        seed = stream_seed(0, "local", round=request.round, client=asked.node)
        examples = task.client_data(asked.node, num_clients)
        result = trainer.train(request.weights, examples, request.hyper, draws=Draws.seeded(seed))
        return update_of(asked, result.delta, num_examples=float(len(examples)))

    return client


def test_digits_are_learnt_and_refined(tmp_path: Path) -> None:
    task = Digits()
    config = build(
        ServerConfig,
        {
            "run_dir": str(tmp_path / "new" / "run"),
            "rounds": {"num_rounds": 5, "poll_interval_s": 0.01},
            "train": {"local_epochs": 3},
            "evaluate": {"every_rounds": 0},
            "refine": {"trainer": "in-process"},
        },
    )
    summary = run_federation(FakeGrid(dict.fromkeys(range(4), trains(task, 4))), config)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").open()]
    assert [line["round"] for line in lines] == list(range(6))
    assert lines[0]["accuracy_test"] < 0.4
    assert lines[-1]["accuracy_test"] > 0.85
    assert sum(summary.refinements.values()) == 5
    assert {line["refinement"] for line in lines[1:]} <= {"accepted", "rejected"}
    assert lines[0]["refinement"] == "off"
    stored = CheckpointStore(config.run_dir / "checkpoints").latest()
    assert stored is not None
    assert stored.digest == lines[-1]["model_digest"]
    assert stored.weights.tobytes() == summary.weights.tobytes()


class FailingRefiner:
    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        raise RefineError("the trainer is down")

    def close(self) -> None:
        raise AssertionError("whoever passed it closes it")


def test_a_failing_trainer_costs_nothing_but_the_refinement(tmp_path: Path) -> None:
    tree = {"run_dir": str(tmp_path / "a"), "rounds": {"num_rounds": 2, "poll_interval_s": 0.01}}
    config = build(ServerConfig, tree)
    grid = FakeGrid({1: honest, 2: honest})
    summary = run_federation(grid, config, task=TinyTask(), refiner=FailingRefiner())
    assert summary.refinements == {"accepted": 0, "rejected": 0, "failed": 2}
    assert summary.rounds[1]["refinement_detail"] == {"reason": "the trainer is down"}
    off = run_federation(
        FakeGrid({1: honest, 2: honest}),
        build(ServerConfig, {**tree, "run_dir": str(tmp_path / "b")}),
        task=TinyTask(),
    )
    np.testing.assert_array_equal(summary.weights, off.weights)


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = build(ServerConfig, {"run_dir": str(tmp_path / "file" / "run")})
    with pytest.raises(ConfigError, match="run_dir: cannot make"):
        run_federation(FakeGrid({}), config, task=TinyTask())


RESUMABLE = {
    "seed": 5,
    "rounds": {"num_rounds": 40, "cohort_size": 3, "poll_interval_s": 0.005},
    "aggregation": {"server_optimizer": "fedavgm"},
    "evaluate": {"every_rounds": 0},
}
CHILD = """
    import json
    import sys
    import time
    import torch
    from fedge.config import build
    from server.federation import run_federation
    from server.settings import ServerConfig
    from tests.unit.server.fake_grid import FakeGrid, TinyTask, honest

    torch.set_num_threads(1)
    slow = FakeGrid(dict.fromkeys(range(1, 8), honest))
    slow.faults = lambda operation: time.sleep(0.005)
    print("ready", flush=True)
    run_federation(slow, build(ServerConfig, json.loads(sys.argv[1])), task=TinyTask())
"""


@pytest.mark.slow
def test_a_server_killed_in_the_middle_ends_with_the_same_bits(tmp_path: Path) -> None:
    folder = tmp_path / "killed"

    def child() -> subprocess.Popen[str]:
        tree = json.dumps({**RESUMABLE, "run_dir": str(folder)})
        command = [sys.executable, "-c", textwrap.dedent(CHILD), tree]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    rng = np.random.default_rng(1)
    for _ in range(2):
        with child() as killed:
            assert killed.stdout is not None
            assert killed.stdout.readline() == "ready\n"
            time.sleep(float(rng.uniform(0.2, 0.5)))  # the random instant
            killed.send_signal(signal.SIGKILL)
    with child() as last:
        last.communicate(timeout=100)
    assert last.returncode == 0
    config = build(ServerConfig, {**RESUMABLE, "run_dir": str(tmp_path / "whole")})
    whole = run_federation(FakeGrid(dict.fromkeys(range(1, 8), honest)), config, task=TinyTask())
    found = CheckpointStore(folder / "checkpoints").latest()
    assert found is not None
    assert found.round == 40
    assert found.weights.tobytes() == whole.weights.tobytes()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [line["round"] for line in lines] == list(range(41))
    digests = [line["model_digest"] for line in lines]
    assert digests == [line["model_digest"] for line in whole.rounds]
    starts = [
        event["round"]
        for line in (folder / "events.jsonl").open()
        if (event := json.loads(line))["kind"] == "run-started"
    ]
    assert starts[-1] > 0  # it was really killed in the middle
