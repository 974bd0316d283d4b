"""Run folders written by hand."""

import json
from pathlib import Path
from typing import Any


def metrics_of(round: int, **more: Any) -> dict[str, Any]:
    """Return one line of ``metrics.jsonl`` as a server without simulation writes it."""
    return {
        "round": round,
        "num_selected": 4 if round else 0,
        "num_accepted": 3 if round else 0,
        "refused": {},
        "applied": round > 0,
        "accuracy_test": 0.1 + 0.1 * round,
        "accuracy_gate": None,
        "loss_test": 2.0 / (1 + round),
        "refinement": "off",
        "refinement_detail": None,
        "epsilon": {},
        "epsilon_central": None,
        "evaluation": None,
        "model_digest": str(round) * 8,
        **more,
    }


def simulated(round: int, *, speed: float = 100.0, **more: Any) -> dict[str, Any]:
    """Return one line as a simulation writes it, with everything a report draws."""
    return metrics_of(
        round,
        epsilon={"7": 0.5 * round, "8": 0.25 * round},
        epsilon_central=2.0 * round,
        evaluation={
            "num_clients": 3,
            "accuracy": 0.5,
            "accuracy_worst_tenth": 0.2,
            "accuracy_deciles": [0.2 + 0.05 * step for step in range(11)],
        },
        simulation={
            "virtual_s": 60.0 * round,
            "bytes_down": 1024,
            "bytes_up": 512,
            "outcomes": {"ok": 3, "drop-out": 1},
            "clients_per_s": speed,
            "rss_bytes": 1 << 20,
            "peak_rss_bytes": 1 << 21,
        },
        **more,
    )


def write_run(
    folder: Path, lines: list[dict[str, Any]], config: dict[str, Any] | None = None
) -> Path:
    """Write a run folder and return it."""
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
