"""From a task to degrees: what is refused while nothing has started yet."""

import logging

import pytest
import torch
from torch import nn

from fedge.config import build
from fedge.errors import ConfigError, TaskError
from fedge.split_plan import SplitPlan
from fedge.tasks.charlm import CharLm
from fedge.tasks.digits import Digits
from server.trainer.parallel.build import build_parallel, memory_of, plan_mesh
from server.trainer.parallel.degrees import Degrees, MeshConfig
from server.trainer.parallel.mesh import Mesh

GIB = 1024**3


def test_a_task_without_a_plan_gets_data_parallelism_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = plan_mesh(Digits(), MeshConfig(), 4, memory_bytes=GIB)
    assert (found.replicate, found.world_size) == (4, 4)
    with caplog.at_level(logging.INFO):
        build_parallel(Digits(), MeshConfig(), 1, torch.device("cpu"))
    assert "no split_plan(): data parallelism only" in caplog.text


def test_a_mesh_that_does_not_fit_is_refused_with_its_key() -> None:
    for task, key in ((Digits(), "pipeline"), (CharLm(depth=1), "pipeline"), (CharLm(), "tensor")):
        with pytest.raises(ConfigError) as error:
            plan_mesh(task, build(MeshConfig, {key: 8}), 8, memory_bytes=GIB)
        assert error.value.key == f"mesh.{key}"


def test_a_chain_that_is_not_the_forward_is_refused() -> None:
    class Shuffled(CharLm):
        def split_plan(self) -> SplitPlan:
            return SplitPlan(("embed", "blocks.1", "blocks.0", "head"), "blocks.*")

    with pytest.raises(TaskError, match="not its model's forward"):
        plan_mesh(Shuffled(depth=2), MeshConfig(), 2, memory_bytes=GIB)


def test_a_model_is_tried_out_with_numbers_that_it_takes() -> None:
    class Words(CharLm):
        def build_model(self) -> nn.Module:
            return nn.Sequential(nn.Embedding(4, 6), nn.Linear(6, 4))

        def split_plan(self) -> SplitPlan:
            return SplitPlan(("0", "1"), "1")

    assert plan_mesh(Words(), MeshConfig(), 2, memory_bytes=GIB).replicate == 2

    class Narrow(Words):
        def build_model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 4))

    with pytest.raises(TaskError, match="takes no zeros of its input_shape"):
        plan_mesh(Narrow(), MeshConfig(), 2, memory_bytes=GIB)


def test_tied_tensors_leave_copies_alone() -> None:
    class Tied(Digits):
        def build_model(self) -> nn.Module:
            first, second = nn.Linear(64, 64), nn.Linear(64, 64)
            second.weight = first.weight
            return nn.Sequential(first, second)

    with pytest.raises(ConfigError, match="only copies") as error:
        plan_mesh(Tied(), MeshConfig(shard=2), 2, memory_bytes=GIB)
    assert error.value.key == "mesh.shard"


def test_a_mesh_needs_as_many_processes_as_there_are() -> None:
    with pytest.raises(ConfigError, match="needs 2 processes, there are 1"):
        Mesh(Degrees(replicate=2), torch.device("cpu"))


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = memory_of(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_of(torch.device("cpu")) == alone // 4 > 0
