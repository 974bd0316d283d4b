"""Degrees: what is chosen, what is said about it, and what is refused before anything starts."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.config import build
from fedge.errors import ConfigError
from fedge.split_plan import SplitPlan
from fedge.tasks.charlm import CharLm
from server.trainer.parallel.degrees import (
    BYTES_PER_PARAMETER,
    DIMENSIONS,
    STATE_FRACTION,
    Degrees,
    MeshConfig,
    choose_degrees,
)

GIB = 1024**3
PLAN = CharLm(width=24, depth=4, heads=6).split_plan()


def choose(
    world_size: int,
    config: MeshConfig | None = None,
    *,
    num_parameters: int = 1_000_000,
    memory_bytes: int = 8 * GIB,
    plan: SplitPlan | None = PLAN,
    batch_size: int | None = None,
    tied: bool = False,
) -> Degrees:
    return choose_degrees(
        config or MeshConfig(),
        world_size,
        num_parameters=num_parameters,
        memory_bytes=memory_bytes,
        plan=plan,
        batch_size=batch_size,
        tied=tied,
    )


def sizes(degrees: Degrees) -> tuple[int, ...]:
    return tuple(getattr(degrees, name) for name in DIMENSIONS)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_model_that_fits_a_device_is_copied(world_size: int) -> None:
    assert sizes(choose(world_size)) == (1, world_size, 1, 1)


def test_a_model_that_does_not_fit_is_sharded_among_as_few_as_needed() -> None:
    found = choose(8, num_parameters=GIB)  # 16 GiB of state, 4.8 GiB of room a device
    assert sizes(found) == (1, 2, 4, 1)
    assert "4.00 GiB of 8.00 GiB a device" in found.explanation


def test_a_model_that_fits_nowhere_is_divided_most_and_the_log_warns() -> None:
    found = choose(2, num_parameters=10 * GIB)
    assert sizes(found) == (1, 1, 2, 1)
    assert "may not fit" in found.explanation
    assert "may not fit" not in choose(2).explanation


def test_processes_without_an_example_divide_layers_or_stages_instead() -> None:
    assert sizes(choose(8, batch_size=4)) == (1, 4, 1, 2)
    assert sizes(choose(8, batch_size=8)) == (1, 8, 1, 1)
    assert sizes(choose(5, batch_size=1)) == (1, 5, 1, 1)  # 5 divides neither heads nor blocks


def test_the_explanation_is_one_line_with_degrees_and_what_was_chosen() -> None:
    text = choose(4, MeshConfig(tensor=2)).explanation
    assert "\n" not in text
    assert "pipeline 1 × replicate 2 × shard 1 × tensor 2 = 4 processes" in text
    assert "chosen here: pipeline, replicate, shard" in text
    everything = MeshConfig(pipeline=1, replicate=1, shard=2, tensor=2)
    assert "all set by the configuration" in choose(4, everything).explanation
    assert "no split_plan(): data parallelism only" in choose(4, plan=None).explanation


@pytest.mark.parametrize(
    ("world_size", "config", "key", "text"),
    [
        (4, MeshConfig(tensor=3), "mesh.tensor", "tensor 3 is 3, which 4 processes cannot make"),
        (4, MeshConfig(shard=8), "mesh.shard", "shard 8 is 8"),
        (4, MeshConfig(1, 1, 2, 1), "mesh.shard", "which 4 processes cannot make"),
        (4, MeshConfig(tensor=4), "mesh.tensor", "4 does not divide the layers' 6 units"),
        (8, MeshConfig(pipeline=8), "mesh.pipeline", "4 blocks cannot make 8 stages"),
        (4, MeshConfig(pipeline=4, micro_batches=2), "mesh.micro_batches", "4 stages"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_by_its_key(
    world_size: int, config: MeshConfig, key: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as error:
        choose(world_size, config)
    assert error.value.key == key


@pytest.mark.parametrize("key", ["pipeline", "tensor"])
def test_a_model_without_a_plan_has_data_parallelism_alone(key: str) -> None:
    with pytest.raises(ConfigError, match=r"no split_plan\(\)") as error:
        choose(4, build(MeshConfig, {key: 2}), plan=None)
    assert error.value.key == f"mesh.{key}"
    assert sizes(choose(4, plan=None, batch_size=1)) == (1, 4, 1, 1)


def test_a_model_with_tied_tensors_is_only_copied() -> None:
    with pytest.raises(ConfigError, match="only copies are possible") as error:
        choose(4, MeshConfig(shard=2), tied=True)
    assert error.value.key == "mesh.shard"
    assert sizes(choose(4, tied=True, num_parameters=GIB)) == (1, 4, 1, 1)


def possible(world_size: int, wanted: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the meshes of the plan's 4 blocks and 6 heads, found by trying all."""
    return [
        each
        for each in itertools.product(range(1, world_size + 1), repeat=4)
        if math.prod(each) == world_size
        and all(want in (0, got) for want, got in zip(wanted, each, strict=True))
        and each[0] <= 4
        and 6 % each[3] == 0
    ]


@given(
    world_size=st.integers(1, 8),
    wanted=st.tuples(*[st.sampled_from([0, 0, 1, 2, 3, 4])] * 4),
    num_parameters=st.integers(1, 4 * GIB),
    batch_size=st.none() | st.integers(1, 64),
)
def test_what_is_chosen_obeys_what_is_set_and_fits_where_anything_does(
    world_size: int, wanted: tuple[int, ...], num_parameters: int, batch_size: int | None
) -> None:
    config = build(MeshConfig, dict(zip(DIMENSIONS, wanted, strict=True)))
    meshes = possible(world_size, wanted)
    if not meshes:
        with pytest.raises(ConfigError, match=r"^mesh\."):
            choose(world_size, config, num_parameters=num_parameters, batch_size=batch_size)
        return
    found = choose(world_size, config, num_parameters=num_parameters, batch_size=batch_size)
    assert sizes(found) in meshes
    state = num_parameters * BYTES_PER_PARAMETER
    least = min(state / (p * s * t) for p, _, s, t in meshes)
    held = state / (found.pipeline * found.shard * found.tensor)
    room = int(8 * GIB * STATE_FRACTION)
    assert held <= room or least > room
