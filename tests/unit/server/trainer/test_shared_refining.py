"""Several ranks refine like one: the same weights, the same end."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fedge.errors import RefineError
from fedge.training.local import LocalTrainer
from server.trainer.alone import refining_alone
from server.trainer.checkpoints import DcpCheckpoints
from server.trainer.loop import Control
from server.trainer.parallel.build import build_parallel
from server.trainer.parallel.degrees import MeshConfig
from server.trainer.ranks import TorchRanks
from server.trainer.refining import ProxyData, Refining
from server.trainer.spec import RefineSpec
from tests.tiny_task import TinyTask
from tests.unit.server.trainer.parallel.ranks import run_ranks

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Noisy(TinyTask):
    """Varies its inputs by noise of its own."""

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 0.3 * torch.randn(inputs.shape, generator=generator)


TASK = Noisy(dropout=0.0)
START = LocalTrainer(TASK).initial_weights(0)
SPECS = [
    RefineSpec(learning_rate=0.1, batch_size=size, steps=15, max_grad_norm=norm, objective=name)
    for size, norm, name in ((8, 0.0, "fine-tune"), (7, 0.05, "anchored"), (1, 0.0, "distill"))
]
SPECS.append(replace(SPECS[0], augmentation="task"))


def _refining(mesh: MeshConfig, folder: str = "") -> Refining:
    rank, size = dist.get_rank(), dist.get_world_size()
    data = TASK.cloud_data()
    refining = Refining(
        TASK,
        build_parallel(TASK, mesh, size, torch.device("cpu")),
        ProxyData(data.proxy),
        TorchRanks(dist.distributed_c10d._get_default_store(), rank, size),
    )
    if folder:
        refining.checkpoints = DcpCheckpoints(Path(folder), 1e-9)
    return refining


def _refine_all(mesh: dict[str, Any]) -> list[list[float]]:
    refining = _refining(MeshConfig(**mesh))
    return [refining.run(START, spec).weights.tolist() for spec in SPECS]


@pytest.mark.parametrize("mesh", [{}, {"shard": 2}])
def test_two_ranks_that_share_each_batch_equal_one(mesh: dict[str, int], tmp_path: Path) -> None:
    alone = [refining_alone(TASK).run(START, spec).weights for spec in SPECS]
    for answers in run_ranks(_refine_all, 2, tmp_path, mesh):
        np.testing.assert_allclose(answers, alone, atol=1e-5)


def _end_early(folder: str) -> list[Any]:
    refining, rank = _refining(MeshConfig()), dist.get_rank()
    budget = RefineSpec(learning_rate=0.1, steps=50_000, budget_s=0.2)
    ended: list[Any] = [refining.run(START, budget).num_steps]
    calls = iter(range(100))
    control = Control(should_stop=lambda: rank == 1 and next(calls) == 5)
    try:
        refining.run(START, RefineSpec(steps=50), control)
    except RefineError as error:
        ended.append(str(error))
    return ended


def test_a_sign_that_one_rank_sees_ends_all_at_the_same_step(tmp_path: Path) -> None:
    first, second = run_ranks(_end_early, 2, tmp_path, str(tmp_path))
    assert first == second
    assert 1 <= first[0] < 50_000
    assert first[1] == "the refinement was cancelled after 5 of 50 steps"


def _cut_and_go_on(folder: str) -> list[list[float]]:
    """Be cancelled halfway, then go on with another mesh from what was kept."""
    found = []
    for number, spec in enumerate(SPECS):
        meshes = [MeshConfig(shard=2), MeshConfig(replicate=2)]
        first, second = (_refining(mesh, folder) for mesh in meshes)
        key = f"order-{number}"
        calls = iter(range(100))
        control = Control(should_stop=lambda calls=calls: next(calls) == 9)  # type: ignore[misc]
        try:
            first.run(START, spec, control, key=key)
        except RefineError:
            first.checkpoints.close()
        steps: list[int] = []
        control = Control(progress=lambda step, *_, steps=steps: steps.append(step))
        found.append(second.run(START, spec, control, key=key).weights.tolist())
        second.checkpoints.close()
        assert steps[0] > 1, "it began anew"
    return found


def test_two_ranks_go_on_from_the_checkpoint_of_another_mesh(tmp_path: Path) -> None:
    alone = [refining_alone(TASK).run(START, spec).weights for spec in SPECS]
    for answers in run_ranks(_cut_and_go_on, 2, tmp_path, str(tmp_path / "kept")):
        np.testing.assert_allclose(answers, alone, atol=1e-5)
