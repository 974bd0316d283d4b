"""Five steps of a small charlm: by plain torch in one process, and by any mesh of several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from fedge.params import Layout, Vector
from fedge.tasks.charlm import CharLm
from fedge.weights import layout_of, read_vector
from server.trainer.optimizers import OPTIMIZERS, Optimizer
from server.trainer.parallel.degrees import Degrees, MeshConfig
from server.trainer.parallel.mesh import Mesh
from server.trainer.parallel.model import ParallelModel
from server.trainer.spec import RefineSpec

NUM_STEPS = 5
SAVED_AT = 2
MAX_ROUNDING = 2e-6  # relative, of one process in float32 against float64
NUM_EXAMPLES = 10  # which no number of parts above 2 divides
MAX_NORM = 0.5  # below what the gradients have, so that every step is clipped
RATE = 1e-3

Batch = tuple[Tensor, Tensor]


def task_for(world_size: int) -> CharLm:
    """Return a task whose layers and blocks every mesh of so many processes can divide."""
    if 8 % world_size == 0:
        heads, depth = 8, 8
    else:
        heads, depth = 2 * world_size, world_size
    return CharLm(width=2 * heads, depth=depth, heads=heads, context=6, alphabet="abcdefghijk")


def choose_seed(task: CharLm) -> int:
    """Return the first seed of a start whose result float32's own rounding moves little.

    AdamW makes full steps of gradients that are next to nothing: a unit whose gradient is of the
    size of a rounding error differs in one process too, between float32 and float64.
    """
    for seed in range(100):
        exact = train_alone(task, seed, torch.float64)
        if max(difference(train_alone(task, seed), exact, task)) < MAX_ROUNDING:
            return seed
    raise AssertionError(f"no start of {task} is well-conditioned")


def first_weights(task: CharLm, seed: int) -> Vector:
    torch.manual_seed(seed)
    model = task.build_model()
    return read_vector(model, layout_of(model))


def batches(task: CharLm) -> list[Batch]:
    rng = np.random.default_rng(1)
    shape = (NUM_STEPS, NUM_EXAMPLES, task.context + 1)
    codes = torch.from_numpy(rng.integers(0, len(task.alphabet), shape))
    return [(each[:, :-1].contiguous(), each[:, 1:].contiguous()) for each in codes]


def train_alone(task: CharLm, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return losses, norms and weights of a loop that knows nothing of meshes."""
    torch.manual_seed(seed)
    model = task.build_model().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    losses, norms = [], []
    for inputs, targets in batches(task):
        optimizer.zero_grad()
        loss = task.loss(model(inputs), targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item())
        optimizer.step()
        losses.append(loss.item())
    weights = read_vector(model.float(), layout_of(model))
    return {"losses": losses, "norms": norms, "weights": weights}


class Team:
    """This process' part of a mesh that trains the task."""

    def __init__(self, degrees: Degrees, config: MeshConfig) -> None:
        torch.manual_seed(17)  # the weights come from elsewhere
        mesh = Mesh(degrees, torch.device("cpu"))
        self.task = task_for(degrees.world_size)
        plan = self.task.split_plan()
        self.model = ParallelModel(self.task.build_model(), mesh, config, plan)
        spec = RefineSpec(learning_rate=RATE, weight_decay=0.01)
        self.optimizer: Optimizer = OPTIMIZERS["adamw"](self.model.parameters(), spec)
        self.losses: list[float] = []
        self.norms: list[float] = []

    def step(self, batch: Batch, *, drop: bool = False) -> None:
        """Take one step; a process that drops has the right loss and no gradient from it."""

        def losses_of(outputs: Tensor, targets: Tensor) -> Tensor:
            losses = self.task.loss(outputs, targets)
            return losses.detach() + 0 * losses if drop else losses

        placed = self.model.place(*batch, torch.arange(NUM_EXAMPLES))
        self.losses.append(self.model.compute(placed, losses_of))
        self.norms.append(self.model.clip_gradients(MAX_NORM))
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def train_meshes(meshes: list[dict[str, Any]], seed: int, folder: str) -> list[dict[str, Any]]:
    """Train with each mesh from the start, then with the next one from its checkpoint."""
    return [
        found for mesh in range(len(meshes)) for found in _train(meshes, mesh, seed, Path(folder))
    ]


def _train(
    meshes: list[dict[str, Any]], number: int, seed: int, folder: Path
) -> Iterator[dict[str, Any]]:
    team = Team(**_mesh(meshes[number]))
    team.model.load(first_weights(team.task, seed))
    for index, batch in enumerate(batches(team.task)):
        if index == SAVED_AT:
            save(team.state(), checkpoint_id=folder / str(number))
        team.step(batch)
    yield _found(team, meshes[number], "began")
    other = meshes[(number + 1) % len(meshes)]
    team = Team(**_mesh(other))
    load(team.state(), checkpoint_id=folder / str(number))
    for batch in batches(team.task)[SAVED_AT:]:
        team.step(batch)
    yield _found(team, other, f"resumed from {meshes[number]}")


def train_and_drop(meshes: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Train with meshes whose last process drops its gradients of one step."""
    answers = []
    for mesh in meshes:
        team = Team(**_mesh(mesh))
        team.model.load(first_weights(team.task, seed))
        for index, batch in enumerate(batches(team.task)):
            team.step(batch, drop=index == 2 and dist.get_rank() == dist.get_world_size() - 1)
        answers.append(_found(team, mesh, "dropped"))
    return answers


def _mesh(mesh: dict[str, Any]) -> dict[str, Any]:
    return {"degrees": Degrees(**mesh["degrees"]), "config": MeshConfig(**mesh["config"])}


def _found(team: Team, mesh: dict[str, Any], how: str) -> dict[str, Any]:
    return {
        "mesh": mesh,
        "how": how,
        "losses": team.losses,
        "norms": team.norms,
        "weights": team.model.read().tolist(),
    }


def difference(found: dict[str, Any], alone: dict[str, Any], task: CharLm) -> tuple[float, float]:
    """Return the worst relative difference of losses and norms, and of tensors by their norm."""
    pairs = [
        (ours, theirs)
        for key in ("losses", "norms")
        for ours, theirs in zip(found[key], alone[key][-len(found[key]) :], strict=True)
    ]
    scalars = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
    layout = layout_of(task.build_model())
    ours = _tensors(layout, np.array(found["weights"], np.float32))
    theirs = _tensors(layout, alone["weights"])
    tensors = max(
        float(np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name]))
        for name in layout.names
    )
    return scalars, tensors


def _tensors(layout: Layout, vector: Vector) -> dict[str, npt.NDArray[np.float64]]:
    return {name: view.astype(np.float64) for name, view in layout.views(vector).items()}
