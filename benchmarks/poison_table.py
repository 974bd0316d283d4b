"""Losses of every method under every attack, as numbers and as Markdown for the docs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

NO_ATTACK = "none"
EXEMPT = frozenset({"alie", "ipm"})
"""Attacks that are reported and bound nobody: they stay within what honest updates look like."""

Table = dict[str, dict[str, Any]]
Points = Mapping[tuple[str, str, str, int], float]


def summarize(points: Points, baseline: str) -> Table:
    """Return by setting the unattacked baseline and each method's mean loss under each attack.

    Args:
        points: accuracy in points by setting, method, attack and seed.
        baseline: method whose unattacked accuracy, seed by seed, losses are against.
    """
    table: Table = {}
    for setting in dict.fromkeys(key[0] for key in points):
        seeds = sorted(key[3] for key in points if key[:3] == (setting, baseline, NO_ATTACK))
        before = {seed: points[setting, baseline, NO_ATTACK, seed] for seed in seeds}
        pairs = dict.fromkeys(key[1:3] for key in points if key[0] == setting)
        losses: dict[str, dict[str, float]] = {}
        for method, attack in pairs:
            by_seed = [before[seed] - points[setting, method, attack, seed] for seed in seeds]
            losses.setdefault(method, {})[attack] = round(statistics.fmean(by_seed), 3)
        table[setting] = {
            "baseline_points": round(statistics.fmean(before.values()), 3),
            "num_seeds": len(seeds),
            "loss_points": losses,
        }
    return table


def worst_loss(table: Table, setting: str, method: str) -> float | None:
    """Return a method's largest loss over the attacks that count; None where it did not run."""
    losses = table.get(setting, {}).get("loss_points", {}).get(method, {})
    counted = [
        loss for attack, loss in losses.items() if attack != NO_ATTACK and attack not in EXEMPT
    ]
    return max(counted, default=None)


def to_markdown(table: Table) -> str:
    """Return one Markdown table a setting: a line a method, a column an attack."""
    return "\n\n".join(_setting_to_markdown(name, entry) for name, entry in table.items()) + "\n"


def _setting_to_markdown(setting: str, entry: dict[str, Any]) -> str:
    losses: dict[str, dict[str, float]] = entry["loss_points"]
    named = {attack for by_attack in losses.values() for attack in by_attack}
    attacks = [NO_ATTACK, *sorted(named - {NO_ATTACK} - EXEMPT), *sorted(named & EXEMPT)]
    lines = [
        f"**{setting}**: unattacked weighted mean {entry['baseline_points']:.1f} %, "
        f"{entry['num_seeds']} seeds; points lost",
        "",
        "| method | " + " | ".join(attacks) + " |",
        "| --- |" + " ---: |" * len(attacks),
    ]
    for method, by_attack in losses.items():
        cells = [f"{by_attack[name]:.1f}" if name in by_attack else "" for name in attacks]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
