"""The whole demo as a person starts it, smaller: real processes from the first to the last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.jsonl import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[2]
KEYS = {
    *("rounds", "accuracy_initial", "accuracy_final", "accuracy_fedavg_only"),
    *("accuracy_cloud_only", "refinements_accepted", "refinements_rejected", "devices"),
    *("epsilon", "delta", "epsilon_covers", "predictions", "predictions_failed", "latency_ms"),
    *("model_version_server", "model_version_devices", "round_overhead_s"),
}
DEVICES = {"device-0", "device-1"}


def processes_that_name(folder: Path) -> list[str]:
    """Return the command lines, ours apart, that contain a folder's path."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command and int(path.parent.name) != os.getpid():
            found.append(command)
    return found


def test_the_demo_succeeds_and_leaves_its_figures_and_no_process(tmp_path: Path) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "simulation.demo", "--runs", str(tmp_path), "--name", "t"),
            *("--devices", "2", "--rounds", "2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    folder = tmp_path / "t"
    logs = "\n".join(path.read_text()[-2000:] for path in (folder / "logs").glob("*.log"))
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{logs}"
    assert processes_that_name(folder) == []
    for line in ("round 0/2", "round 1/2", "What each half adds"):
        assert line in result.stdout
    assert "Traceback" not in result.stderr + logs

    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= KEYS
    rounds = read_jsonl(folder / "metrics.jsonl")
    assert [line["round"] for line in rounds] == [0, 1, 2]
    assert rounds == read_jsonl(folder / "server" / "metrics.jsonl")
    assert (summary["rounds"], summary["devices"], summary["delta"]) == (2, 2, 1e-5)
    assert summary["accuracy_initial"] == rounds[0]["accuracy_test"]
    assert summary["accuracy_final"] == rounds[-1]["accuracy_test"] > summary["accuracy_initial"]

    assert summary["predictions"] > 0
    assert summary["predictions_failed"] == 0
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]
    assert summary["model_version_server"] == rounds[-1]["model_digest"]
    assert summary["model_version_devices"] == dict.fromkeys(DEVICES, rounds[-1]["model_digest"])
    assert summary["epsilon"].keys() == DEVICES
    assert all(0 < epsilon <= 8.0 * (1 + 1e-9) for epsilon in summary["epsilon"].values())
    reported = sorted(rounds[-1]["epsilon"].values())
    assert sorted(summary["epsilon"].values()) == pytest.approx(reported)
    for name in ("accuracy.png", "latency.png", "epsilon.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
