"""What a daemon needs to know of its task without running the task's code itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedge.task import EdgeFiles, Task
from fedge.windows import WindowSpec, window_spec_of


@dataclass(frozen=True)
class Description:
    """What the training process says about its task, so that the daemon need not load it.

    Attributes:
        template, plan: the task's shipped TFLite files; empty where it ships none.
        windows: JSON of the `WindowSpec` that its inputs are cut by; empty where they are not.
    """

    name: str
    input_shape: tuple[int, ...]
    template: str = ""
    plan: str = ""
    windows: str = ""

    @staticmethod
    def of(task: Task) -> Description:
        """Describe a task."""
        files, windows = task.edge_files(), window_spec_of(task)
        return Description(
            name=task.name,
            input_shape=tuple(task.input_shape),
            template="" if files is None else str(files.template.resolve()),
            plan="" if files is None else str(files.plan.resolve()),
            windows="" if windows is None else windows.to_json(),
        )

    @property
    def files(self) -> EdgeFiles | None:
        """The shipped files, None where there are none."""
        return EdgeFiles(Path(self.template), Path(self.plan)) if self.template else None

    @property
    def window_spec(self) -> WindowSpec | None:
        """How inputs are cut from readings, None where they are not."""
        return WindowSpec.from_json(self.windows) if self.windows else None
