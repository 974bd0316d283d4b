"""Seeds and sweeps: every combination of settings in a folder of its own, results in one table."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.table import Table

from fedge.config import to_tree
from fedge.errors import ConfigError, FedgeError
from simulation.quantities import mean_and_spread
from simulation.report.runs import METRICS, Rounds, read_rounds
from simulation.report.series import at, lookup
from simulation.report.table import TableRun, write_table
from simulation.run_folder import differences
from simulation.settings import SimulateConfig

if TYPE_CHECKING:
    from simulation.runner import SimulationResult

log = logging.getLogger(__name__)

RESULTS = "results.parquet"
MAX_NAME = 200
_FORBIDDEN = {
    "server.seed": "the seeds of a sweep are those of --seeds, from server.seed on",
    "server.run_dir": "each combination has a folder of its own in server.run_dir",
}
"""Settings that a resumed combination may have others of: results stay what they were."""


@dataclass(frozen=True, eq=False)
class Combination:
    """One run of a sweep.

    Attributes:
        name: of the folder beside those of other combinations; empty where only seeds vary.
        keys: value of each swept setting.
        config: whole, with its own run folder and seed.
    """

    name: str
    keys: Mapping[str, Any]
    seed: int
    config: SimulateConfig

    @property
    def run_dir(self) -> Path:
        """Folder of this combination and seed."""
        return self.config.server.run_dir

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.name} seed {self.seed}".strip()


@dataclass(frozen=True, eq=False)
class Outcome:
    """How one combination ended.

    Attributes:
        rounds: committed rounds, of an earlier process too; [] where there are none.
        error: why it failed; empty where it did not.
    """

    combination: Combination
    rounds: Rounds
    error: str = ""

    @property
    def final_accuracy(self) -> float | None:
        """Accuracy on the test set after the last round."""
        accuracy = at("accuracy_test")(self.rounds[-1:])
        return float(accuracy[0]) if accuracy.size and accuracy[0] == accuracy[0] else None


def combinations(
    load: Callable[[Sequence[str]], SimulateConfig], sweeps: Sequence[str], num_seeds: int = 1
) -> list[Combination]:
    """Return every combination of swept settings, each with every seed.

    Args:
        load: makes the configuration with further overrides ``key=value``.
        sweeps: ``key=a,b,c`` each; a comma inside quotes or brackets belongs to its value.
        num_seeds: seeds from ``server.seed`` on.

    Raises:
        ConfigError: a sweep that cannot be read, or a combination whose settings are wrong.
    """
    if num_seeds < 1:
        raise ConfigError(f"--seeds must be >= 1, got {num_seeds}")
    root = load(()).server.run_dir
    if (root / METRICS).exists():
        raise ConfigError(
            f"{root} holds a single run: choose another folder for its seeds and sweeps",
            key="server.run_dir",
        )
    axes = [_parse(text) for text in sweeps]
    _check_axes(axes)
    found = []
    for chosen in itertools.product(*(values for _, values in axes)):
        pairs = [(key, text) for (key, _), text in zip(axes, chosen, strict=True)]
        base = load([f"{key}={text}" for key, text in pairs])
        tree = to_tree(base)
        keys = {key: lookup(tree, key) for key, _ in pairs}
        name = _folder_name(pairs)
        for seed in range(base.server.seed, base.server.seed + num_seeds):
            server = replace(base.server, seed=seed, run_dir=root / name / f"seed-{seed}")
            found.append(Combination(name, keys, seed, replace(base, server=server)))
    return found


def run_sweep(
    found: Sequence[Combination], run: Callable[[Combination], SimulationResult], results: Path
) -> list[Outcome]:
    """Run what is not finished, one after another; one that fails does not stop the others.

    Args:
        found: of `combinations`.
        run: runs one, resuming what its folder holds.
        results: Parquet file that is written when all are done, or when stopped on the way.

    Raises:
        ConfigError: the results cannot be written.
    """
    outcomes: list[Outcome] = []
    try:
        for number, combination in enumerate(found, start=1):
            log.info("%d of %d: %s", number, len(found), combination.title)
            outcomes.append(_run_one(combination, run))
    finally:
        if any(outcome.rounds for outcome in outcomes):
            write_table(results, [_table_run(outcome) for outcome in outcomes])
    return outcomes


def summary_table(outcomes: Sequence[Outcome]) -> Table:
    """Return final accuracy by combination: mean ± standard deviation over its seeds."""
    table = Table(title="Final accuracy")
    table.add_column("settings")
    for name in ("seeds", "accuracy", "failed"):
        table.add_column(name, justify="right")
    for _, group in itertools.groupby(outcomes, key=lambda each: each.combination.name):
        members = list(group)
        ended = [each for each in members if not each.error]
        accuracies = [each.final_accuracy for each in ended]
        known = [each for each in accuracies if each is not None]
        keys = members[0].combination.keys
        settings = "\n".join(f"{key} = {_say(value)}" for key, value in keys.items())
        table.add_row(
            _plain(settings or "–"),
            str(len(ended)),
            mean_and_spread(known) if known else "–",
            str(len(members) - len(ended)),
        )
    return table


def _run_one(combination: Combination, run: Callable[[Combination], SimulationResult]) -> Outcome:
    path = combination.run_dir / METRICS
    try:
        _check_same(combination)
        if _is_finished(combination):
            log.info("%s is finished already", combination.title)
        else:
            run(combination)
        return Outcome(combination, read_rounds(path))
    except FedgeError as error:
        reason = "; ".join(str(error).splitlines())
        log.error("%s failed: %s", combination.title, reason)
    except Exception as error:  # a bug in one combination is not worth the others
        reason = f"{type(error).__name__}: {error}"
        log.exception("%s failed: this is a bug in fedge or in the task", combination.title)
    return Outcome(combination, _rounds_if_any(path), reason)


def _rounds_if_any(path: Path) -> Rounds:
    try:
        return read_rounds(path)
    except FedgeError:
        return []


def _is_finished(combination: Combination) -> bool:
    rounds = read_rounds(combination.run_dir / METRICS)
    num_rounds = combination.config.server.rounds.num_rounds
    return bool(rounds) and int(rounds[-1]["round"]) >= num_rounds


def _check_same(combination: Combination) -> None:
    """Refuse a folder whose rounds were made with other settings than those asked for."""
    for found in differences(combination.run_dir, combination.config):
        raise ConfigError(
            f"{combination.run_dir} holds a run with {found.before}, now it is {found.now}: "
            "remove that folder or choose another server.run_dir",
            key=found.key,
        )


def _table_run(outcome: Outcome) -> TableRun:
    combination = outcome.combination
    return TableRun(combination.name, outcome.rounds, combination.seed, combination.keys)


def _parse(text: str) -> tuple[str, list[str]]:
    key, sign, values = text.partition("=")
    parts = [part.strip() for part in _split(values)]
    if not sign or not key.strip() or not all(parts):
        raise ConfigError(f"--sweep takes key=a,b,c, got {text!r}")
    for part in parts:
        if parts.count(part) > 1:
            raise ConfigError(f"--sweep names {part!r} twice", key=key.strip())
    return key.strip(), parts


def _split(values: str) -> Iterator[str]:
    """Split at the commas that stand outside quotes and brackets."""
    begin, depth, quoted = 0, 0, ""
    for position, sign in enumerate(values):
        if quoted:
            quoted = "" if sign == quoted else quoted
        elif sign in "\"'":
            quoted = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth == 0:
            yield values[begin:position]
            begin = position + 1
    yield values[begin:]


def _check_axes(axes: Sequence[tuple[str, Sequence[str]]]) -> None:
    names = [key for key, _ in axes]
    for key in names:
        if names.count(key) > 1:
            raise ConfigError("--sweep names it twice: give all values in one", key=key)
        if key in _FORBIDDEN:
            raise ConfigError(f"cannot be swept: {_FORBIDDEN[key]}", key=key)


def _folder_name(pairs: Sequence[tuple[str, str]]) -> str:
    name = ",".join(f"{quote(key, safe='')}={quote(text, safe=':+@')}" for key, text in pairs)
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 17]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _say(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(text: str) -> str:
    """Return text that rich shows as it is: a value may hold brackets."""
    return text.replace("[", r"\[")
