"""Every mesh trains like one process, also from another's checkpoint; one that cheats is caught."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from server.trainer.parallel.degrees import DIMENSIONS
from tests.unit.server.trainer.parallel.ranks import run_ranks
from tests.unit.server.trainer.parallel.training import (
    NUM_STEPS,
    SAVED_AT,
    choose_seed,
    difference,
    task_for,
    train_alone,
    train_and_drop,
    train_meshes,
)

ALL = "FEDGE_ALL_MESHES"
TOLERANCE = 1e-5
CONFIGS: list[dict[str, Any]] = [
    {},
    {"schedule": "gpipe", "checkpointing": True},
    {"micro_batches": 3},
]


def meshes_of(world_size: int) -> list[dict[str, Any]]:
    """Return every mesh of that many processes; schedules and micro-batches take turns."""
    sizes = [n for n in range(1, world_size + 1) if world_size % n == 0]
    found = [
        (pipeline, replicate, shard, tensor)
        for pipeline in sizes
        for replicate in sizes
        for shard in sizes
        for tensor in sizes
        if pipeline * replicate * shard * tensor == world_size
    ]
    return [
        {
            "degrees": dict(zip(DIMENSIONS, degrees, strict=True)),
            "config": CONFIGS[number % len(CONFIGS)],
        }
        for number, degrees in enumerate(found)
    ]


def check(
    world_size: int, meshes: list[dict[str, Any]], folder: Path, deadline_s: float = 280
) -> None:
    task = task_for(world_size)
    seed = choose_seed(task)
    alone, saved = train_alone(task, seed), str(folder / "saved")
    for answers in run_ranks(
        train_meshes, world_size, folder, meshes, seed, saved, deadline_s=deadline_s
    ):
        assert len(answers) == 2 * len(meshes)
        lengths = [len(found["losses"]) for found in answers]
        assert lengths == [NUM_STEPS, NUM_STEPS - SAVED_AT] * len(meshes)
        for found in answers:
            scalars, tensors = difference(found, alone, task)
            assert max(scalars, tensors) <= TOLERANCE, (found["mesh"], found["how"])


def test_there_are_63_meshes_up_to_8_processes() -> None:
    numbers = [len(meshes_of(world_size)) for world_size in range(1, 9)]
    assert numbers == [1, 4, 4, 10, 4, 16, 4, 20]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.slow
def test_small_meshes_train_like_one_process(world_size: int, tmp_path: Path) -> None:
    check(world_size, meshes_of(world_size), tmp_path)


@pytest.mark.slow
def test_every_pair_of_dimensions_trains_like_one_process(tmp_path: Path) -> None:
    check(4, [mesh for mesh in meshes_of(4) if set(mesh["degrees"].values()) == {1, 2}], tmp_path)


@pytest.mark.parametrize("world_size", [3, 4, 5, 6, 7, 8])
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not os.environ.get(ALL), reason=f"takes up to half an hour: set {ALL}=1")
def test_larger_meshes_train_like_one_process(world_size: int, tmp_path: Path) -> None:
    check(world_size, meshes_of(world_size), tmp_path, deadline_s=1750)


@pytest.mark.slow
def test_a_mesh_that_drops_a_gradient_does_not(tmp_path: Path) -> None:
    task = task_for(2)
    seed = choose_seed(task)
    alone = train_alone(task, seed)
    answers = run_ranks(train_and_drop, 2, tmp_path, meshes_of(2), seed)
    for by_rank in zip(*answers, strict=True):
        worst = max(max(difference(found, alone, task)) for found in by_rank)
        assert worst > 100 * TOLERANCE, by_rank[0]["mesh"]
