"""How many processes share what: chosen or checked before anything starts. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fedge.config import limited
from fedge.errors import ConfigError
from fedge.split_plan import SplitPlan

DIMENSIONS = ("pipeline", "replicate", "shard", "tensor")
BYTES_PER_PARAMETER = 16  # weight, gradient and AdamW's two moments, float32 each
STATE_FRACTION = 0.6  # of a device's memory; the rest is activations and buffers


@dataclass(frozen=True)
class MeshConfig:
    """How the trainer's processes divide the work; a degree of 0 is chosen (``auto``).

    Attributes:
        pipeline: stages that the model is cut into.
        replicate: copies of the model, each with its own part of the batch.
        shard: processes among which each copy's tensors are divided while they are not used.
        tensor: processes that share each column and row layer.
        schedule: order of a pipeline's work.
        micro_batches: parts of each process' batch, one after the other; 0 takes one, or two a
            stage of a pipeline.
        precision: what layers compute in; weights, sums over processes and optimiser are float32.
        checkpointing: keep blocks' inputs only, and compute the rest anew for the backward pass.
        compile: compile blocks with ``torch.compile``.
    """

    pipeline: int = limited(0, ge=0)
    replicate: int = limited(0, ge=0)
    shard: int = limited(0, ge=0)
    tensor: int = limited(0, ge=0)
    schedule: str = limited("1f1b", choices=("1f1b", "gpipe"))
    micro_batches: int = limited(0, ge=0)
    precision: str = limited("float32", choices=("float32", "bfloat16"))
    checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Degrees:
    """Degrees whose product is the number of processes.

    Attributes:
        explanation: one line for the log: what was chosen and why.
    """

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    explanation: str = ""

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.pipeline * self.data * self.tensor

    @property
    def data(self) -> int:
        """Number of parts of each batch."""
        return self.replicate * self.shard

    def __str__(self) -> str:
        """Return the degrees as a person would say them."""
        return " × ".join(f"{name} {getattr(self, name)}" for name in DIMENSIONS)


def choose_degrees(
    config: MeshConfig,
    world_size: int,
    *,
    num_parameters: int,
    memory_bytes: int,
    plan: SplitPlan | None,
    batch_size: int | None = None,
    tied: bool = False,
) -> Degrees:
    """Return degrees that multiply to the world size: those set, the others chosen.

    The fewest divisions that do: copies where the training state fits a device, else tensors
    sharded among as few as needed; layers and stages are divided only where a batch has too few
    examples for all.

    Args:
        memory_bytes: of one device.
        batch_size: examples of a whole batch, where it is known.
        tied: the model uses one tensor in several places.

    Raises:
        ConfigError: no such mesh exists; names the key.
    """
    _check_product(config, world_size)
    options = [each for each in _all_degrees(world_size) if _obeys(each, config)]
    fitting = [each for each in options if _problem(each, plan, tied) is None]
    if not fitting:
        raise _explain_refusal(options, config, world_size, plan, tied)
    _check_micro_batches(config, fitting)
    state = num_parameters * BYTES_PER_PARAMETER
    room = int(memory_bytes * STATE_FRACTION)

    def burden(degrees: Degrees) -> tuple[int, ...]:
        held = state / (degrees.pipeline * degrees.shard * degrees.tensor)
        idle = max(0, degrees.data - batch_size) if batch_size is not None else 0
        return (
            int(held > room),
            idle,
            int(held) if held > room else 0,
            degrees.tensor * degrees.pipeline,
            degrees.shard,
            degrees.pipeline,
        )

    chosen = min(fitting, key=burden)
    return replace(chosen, explanation=_explain(chosen, config, state, memory_bytes, plan))


def _all_degrees(world_size: int) -> Iterator[Degrees]:
    divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
    for pipeline in divisors:
        for shard in divisors:
            for tensor in divisors:
                replicate, rest = divmod(world_size, pipeline * shard * tensor)
                if rest == 0 and replicate > 0:
                    yield Degrees(pipeline, replicate, shard, tensor)


def _obeys(degrees: Degrees, config: MeshConfig) -> bool:
    return all(getattr(config, name) in (0, getattr(degrees, name)) for name in DIMENSIONS)


def _check_product(config: MeshConfig, world_size: int) -> None:
    """Refuse set degrees that cannot multiply to the world size."""
    given = {name: getattr(config, name) for name in DIMENSIONS if getattr(config, name)}
    product = math.prod(given.values())
    said = " × ".join(f"{name} {value}" for name, value in given.items())
    if world_size % product or (len(given) == len(DIMENSIONS) and product != world_size):
        key = max(given, key=lambda name: given[name])
        raise ConfigError(
            f"{said} is {product}, which {world_size} processes cannot make: start as many as the "
            "degrees multiply to, or leave one at 0",
            key=f"mesh.{key}",
        )


def _problem(degrees: Degrees, plan: SplitPlan | None, tied: bool) -> tuple[str, str] | None:
    """Return the key and reason for which a model cannot be divided so, or None."""
    for key in ("pipeline", "tensor"):
        if getattr(degrees, key) > 1 and plan is None:
            return key, "the task has no split_plan(), so that data parallelism is all there is"
    if tied:
        for key in ("pipeline", "shard", "tensor"):
            if getattr(degrees, key) > 1:
                return key, "the model uses one tensor in several places: only copies are possible"
    if plan is None:
        return None
    num_blocks = len(plan.block_names)
    if degrees.pipeline > num_blocks:
        return "pipeline", f"{num_blocks} blocks cannot make {degrees.pipeline} stages"
    if degrees.tensor > 1 and not plan.column:
        return "tensor", "the task's split_plan() names no column and row layers"
    if plan.tensor_units % degrees.tensor:
        return "tensor", f"{degrees.tensor} does not divide the layers' {plan.tensor_units} units"
    return None


def _explain_refusal(
    options: list[Degrees],
    config: MeshConfig,
    world_size: int,
    plan: SplitPlan | None,
    tied: bool,
) -> ConfigError:
    """Return the error that names a key which the person has set, where one is to blame."""
    problems = [found for each in options if (found := _problem(each, plan, tied)) is not None]
    mine = [found for found in problems if getattr(config, found[0])]
    if mine or problems:
        key, reason = (mine or problems)[0]
        return ConfigError(reason, key=f"mesh.{key}")
    free = next(name for name in DIMENSIONS if not getattr(config, name))
    return ConfigError(f"no degrees multiply to {world_size} processes", key=f"mesh.{free}")


def _check_micro_batches(config: MeshConfig, fitting: list[Degrees]) -> None:
    """Refuse fewer micro-batches than a pipeline that was asked for has stages."""
    stages = min(each.pipeline for each in fitting)
    if 0 < config.micro_batches < stages:
        raise ConfigError(
            f"a pipeline of {stages} stages needs at least as many, got {config.micro_batches}",
            key="mesh.micro_batches",
        )


def _explain(
    degrees: Degrees, config: MeshConfig, state: int, memory: int, plan: SplitPlan | None
) -> str:
    held = state / (degrees.pipeline * degrees.shard * degrees.tensor)
    auto = [name for name in DIMENSIONS if not getattr(config, name)]
    words = [
        f"mesh: {degrees} = {degrees.world_size} processes",
        f"weights, gradients and optimiser take {_gib(held)} of {_gib(memory)} a device",
        f"chosen here: {', '.join(auto)}" if auto else "all set by the configuration",
    ]
    if held > memory * STATE_FRACTION:
        words.append(
            f"that is more than {STATE_FRACTION:.0%} and may not fit: start more processes"
        )
    if plan is None:
        words.append("the task has no split_plan(): data parallelism only")
    return "; ".join(words)


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 1024**3:.2f} GiB"
