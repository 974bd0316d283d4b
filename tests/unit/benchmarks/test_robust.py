from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_robust_benchmark_times_the_same_results_as_flowers() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "robust", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["name"], found["quick"]) == ("robust", True)
    assert "10 updates of 1199882 float32 parameters" in found["setup"]
    assert 0 <= found["largest_difference"] < 1e-8
    for name in ("median", "trimmed", "krum"):
        peer_s = found[f"peer_{name}_s"]
        if name == "krum":
            peer_s = min(peer_s, found["peer_krum_one_thread_s"])
        assert found[f"ratio_to_peer_{name}_from_records"] > 0
        assert found[f"ratio_to_peer_{name}"] == pytest.approx(peer_s / found[f"ours_{name}_s"])
