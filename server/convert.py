"""``python -m server.convert``: make a task's TFLite template and plan, once an architecture.

The converter sets environment variables, installs warning filters and starts threads, and its
environment is a gigabyte: a server calls it in a process of its own (`convert_in_subprocess`),
with the interpreter that `find_converter` finds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedge.durable import write_atomically
from fedge.errors import FedgeError, ModelError
from fedge.task import EdgeFiles, load_task

INTERPRETER_VARIABLE = "FEDGE_CONVERT_PYTHON"
MISSING_CONVERTER = (
    'the TFLite converter is not installed: run "make convert-env" (or set '
    f'{INTERPRETER_VARIABLE} to the Python of an environment with "fedge[convert]")'
)
TEMPLATE_NAME = "template.tflite"
PLAN_NAME = "plan.json"
_ROOT = Path(__file__).resolve().parent.parent
_ERROR_PREFIX = "error: "


def convert_task(reference: str, options: Mapping[str, Any], out: Path) -> EdgeFiles:
    """Convert in this process and write both files into a folder.

    Raises:
        FedgeError: the task cannot be loaded or converted, or the folder not written.
    """
    if importlib.util.find_spec("litert_torch") is None:
        raise ModelError(MISSING_CONVERTER)
    from server.template import make_template

    template, plan = make_template(load_task(reference, **options))
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / TEMPLATE_NAME, template)
        write_atomically(out / PLAN_NAME, plan.to_json().encode())
    except OSError as error:
        raise ModelError(f"{out}: the template cannot be written: {error}") from error
    return EdgeFiles(out / TEMPLATE_NAME, out / PLAN_NAME)


def convert_in_subprocess(
    task_reference: str,
    options: Mapping[str, Any],
    out: Path,
    python: str,
    *,
    deadline_s: float = 900.0,
) -> EdgeFiles:
    """Convert in another process, usually of another environment.

    Args:
        task_reference: ``module:attribute``, importable there too.
        options: for the task; JSON values. They travel on standard input, never in argv.
        out: folder for both files.
        python: the interpreter to run.
        deadline_s: the process is ended after this long.

    Raises:
        ModelError: with what the process said.
    """
    command = [python, "-m", "server.convert", "--task", task_reference]
    command += ["--options", "-", "--out", str(out.resolve())]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(dict(options), default=str),
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )
    except OSError as error:
        raise ModelError(
            f"{python} cannot be run ({error.strerror}); {MISSING_CONVERTER}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"converting {task_reference} took longer than {deadline_s:g} s"
        ) from error
    if done.returncode != 0:
        raise ModelError(f"converting {task_reference} failed: {_reason(done)}")
    return EdgeFiles(out / TEMPLATE_NAME, out / PLAN_NAME)


def find_converter() -> str | None:
    """Return a Python that has the converter, or None: the variable's, make's, or this one."""
    named = os.environ.get(INTERPRETER_VARIABLE)
    if named:
        return named
    made = _ROOT / ".venv-convert" / "bin" / "python"
    if made.is_file():
        return str(made)
    return sys.executable if importlib.util.find_spec("litert_torch") is not None else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m server.convert", description="Make a template.")
    parser.add_argument("--task", required=True, help="module:attribute of the task")
    parser.add_argument("--out", required=True, type=Path, help="folder to write both files to")
    parser.add_argument("--options", default="{}", help="task options as JSON; - reads stdin")
    given = parser.parse_args(arguments)
    try:
        files = convert_task(given.task, _read_options(given.options), given.out)
    except FedgeError as error:
        print(f"{_ERROR_PREFIX}{error}", file=sys.stderr)
        return 2
    print(f"{files.template}\n{files.plan}")
    return 0


def _read_options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(sys.stdin.read() if text == "-" else text)
    except ValueError as error:
        raise ModelError(f"--options is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ModelError(f"--options must be a JSON object, got {text:.80}")
    return options


def _environment() -> dict[str, str]:
    """Return this environment, with this source tree importable by the other interpreter.

    An installed fedge is left alone: its folder holds this environment's other packages too.
    """
    environment = dict(os.environ)
    if _ROOT.name not in ("site-packages", "dist-packages"):
        paths = [str(_ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(_ERROR_PREFIX)]
    if said:
        return said[-1].removeprefix(_ERROR_PREFIX)
    last = lines[-1] if lines else "it said nothing"
    if "No module named" in last:
        return f"{last}; {MISSING_CONVERTER}"
    return f"exit status {done.returncode}: {last[:500]}"


if __name__ == "__main__":
    sys.exit(main())
