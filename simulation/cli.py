"""``fedge-simulate``: a whole federation in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fedge.cli import CheckOption, ConfigOption, SetOption, make_app, run_cli, setup_logging
from fedge.config import load
from fedge.task import load_task
from simulation.settings import SimulateConfig

if TYPE_CHECKING:
    from simulation.runner import SimulationResult

app = make_app()


@app.command()
def run(
    config: ConfigOption = None, overrides: SetOption = None, check: CheckOption = False
) -> None:
    """Simulate a federation through the server's own code; resumes a run that was cut off."""
    setup_logging("fedge-simulate")
    settings = load(SimulateConfig, config, overrides or ())
    console = Console()
    # Only now: torch and Flower take seconds to import, --help should not.
    from fedge.weights import build_checked_model
    from server.checks import check_names
    from simulation.attacks.methods import check_attack
    from simulation.runner import simulate

    check_names(settings.server, "server.")
    check_attack(settings.attack)
    task = load_task(settings.server.task.name, **settings.server.task.options)
    build_checked_model(task)
    if check:
        console.print(f"the configuration is good: task {task.name}", highlight=False)
        return
    console.print(_table(simulate(settings, task=task)))
    console.print(f"Figures: {settings.server.run_dir / 'metrics.jsonl'}", highlight=False)


def _table(result: SimulationResult) -> Table:
    table = Table(title=f"{len(result.rounds) - 1} rounds")
    for name in ("round", "clients", "accuracy", "loss", "refinement", "largest ε"):
        table.add_column(name, justify="right")
    for metrics in result.rounds:
        table.add_row(
            str(metrics["round"]),
            f"{metrics['num_accepted']}/{metrics['num_selected']}",
            f"{metrics['accuracy_test']:.4f}",
            f"{metrics['loss_test']:.4f}",
            str(metrics["refinement"]),
            f"{max(metrics['epsilon'].values(), default=0.0):.3f}",
        )
    return table


def main() -> None:
    """Run the console script."""
    run_cli(app)
