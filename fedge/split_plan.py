"""How a model may be cut for several processes, said beside the task and apart from the model.

A task may have a method ``split_plan() -> SplitPlan``. One without it is trained with data
parallelism alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

from fedge.errors import TaskError
from fedge.task import Task


@dataclass(frozen=True)
class SplitPlan:
    """Where a model may be cut. Names are those of ``named_modules``, patterns are fnmatch's.

    Attributes:
        chain: modules that, each called with the result of the one before, are the model's
            forward; together they hold every tensor. A pipeline is cut between them.
        blocks: pattern of those modules of the chain that are repeated and do the work.
        column: patterns of Linear modules whose outputs may be divided among processes.
        row: patterns of Linear modules that take what `column` divided.
        tensor_units: what column layers consist of and what must stay whole, such as heads.
    """

    chain: tuple[str, ...]
    blocks: str
    column: tuple[str, ...] = ()
    row: tuple[str, ...] = ()
    tensor_units: int = 1

    def __post_init__(self) -> None:
        """Refuse a plan that cuts nothing."""
        if len(set(self.chain)) != len(self.chain):
            raise TaskError("split plan: a module stands twice in the chain")
        if not self.block_names:
            raise TaskError(f"split plan: no module of the chain is like {self.blocks!r}")
        if bool(self.column) != bool(self.row) or self.tensor_units < 1:
            raise TaskError("split plan: column and row go together, tensor_units is at least 1")

    @property
    def block_names(self) -> tuple[str, ...]:
        """The chain's repeated modules in order."""
        return tuple(name for name in self.chain if fnmatchcase(name, self.blocks))

    def stages(self, num_stages: int) -> tuple[tuple[str, ...], ...]:
        """Return each stage's part of the chain; numbers of blocks differ by one at most.

        What stands before a block goes with it, what follows the last block goes with that. The
        last stages have fewer blocks, because they have the head.

        Raises:
            TaskError: there are fewer blocks than stages.
        """
        blocks = self.block_names
        if not 1 <= num_stages <= len(blocks):
            raise TaskError(f"{len(blocks)} blocks cannot make {num_stages} pipeline stages")
        each, more = divmod(len(blocks), num_stages)
        cuts, done = [0], 0
        for stage in range(num_stages - 1):
            done += each + (stage < more)
            cuts.append(self.chain.index(blocks[done - 1]) + 1)
        cuts.append(len(self.chain))
        return tuple(self.chain[a:b] for a, b in pairwise(cuts))

    def is_column(self, name: str) -> bool:
        """Tell whether a Linear module's outputs may be divided."""
        return any(fnmatchcase(name, pattern) for pattern in self.column)

    def is_row(self, name: str) -> bool:
        """Tell whether a Linear module's inputs may be divided."""
        return any(fnmatchcase(name, pattern) for pattern in self.row)


def split_plan_of(task: Task) -> SplitPlan | None:
    """Return a task's plan, or None where it has none.

    Raises:
        TaskError: what it returns is no plan.
    """
    make = getattr(task, "split_plan", None)
    if make is None:
        return None
    plan = make()
    if not isinstance(plan, SplitPlan):
        raise TaskError(f"split_plan() of task {task.name} returned a {type(plan).__name__}")
    return plan
