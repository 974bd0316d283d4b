"""The `infer` profile: memory, and how soon it answers, with either runtime and without torch."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.edge_daemon import DIGITS, ROOT, edge_daemon
from benchmarks.harness import CannotRun, progress
from benchmarks.peer_runs import python_of
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2_grpc

EXTRAS = ("infer-tflite", "infer")
NUM_TURNS = 9
NUM_CALLS = 2000
_IN_PROCESS = """
import time
began = time.perf_counter()
from pathlib import Path
import numpy as np
from edge_client.inference import Serving
from edge_client.model_store import load_bundled
from fedge.task import EdgeFiles
folder = Path("fedge/tasks/digits_edge")
serving = Serving(load_bundled(EdgeFiles(folder / "template.tflite", folder / "plan.json")))
serving.predict(np.zeros(64, np.float32))
seconds = time.perf_counter() - began
import json, sys
[kib] = [l.split()[1] for l in open("/proc/self/status") if l.startswith("VmRSS")]
print(json.dumps({"seconds": seconds, "rss_mb": int(kib) * 1024 / 1e6}))
"""


def measure(*, quick: bool) -> dict[str, Any]:
    num_turns = 1 if quick else NUM_TURNS
    pythons = {extra: str(python_of(_requirements(extra))) for extra in EXTRAS}
    figures: dict[str, list[dict[str, float]]] = {extra: [] for extra in EXTRAS}
    for turn in range(num_turns):
        for extra, python in pythons.items():
            figures[extra].append({**_in_process(python), **_daemon(python)})
            progress(f"turn {turn}: {extra} {figures[extra][-1]}")
    table = {
        extra: {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        for extra, turns in figures.items()
    }
    return {
        "setup": (
            f"digits model, an environment of each extra without torch, medians of {num_turns} "
            "interleaved starts with warm disk caches; rss_mb is a fedge-edge process after "
            f"{NUM_CALLS} predictions, daemon_first_answer_s from the start of that process to "
            "its first answer over gRPC, first_answer_s from the first import to an answer in "
            "process; millions of bytes; the worse of both runtimes"
        ),
        "rss_mb": max(each["rss_mb"] for each in table.values()),
        "first_answer_s": max(each["first_answer_s"] for each in table.values()),
        "daemon_first_answer_s": max(each["daemon_first_answer_s"] for each in table.values()),
        "by_extra": table,
    }


def _requirements(extra: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


def _in_process(python: str) -> dict[str, float]:
    done = subprocess.run(
        [python, "-c", _IN_PROCESS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotRun(done.stderr[-500:])
    found = json.loads(done.stdout.splitlines()[-1])
    return {"first_answer_s": found["seconds"], "in_process_rss_mb": found["rss_mb"]}


def _daemon(python: str) -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory(prefix="fedge-") as folder,
        edge_daemon(Path(folder), python) as daemon,
        client_channel(daemon.address, TlsConfig()) as channel,
    ):
        stub = inference_pb2_grpc.InferenceStub(channel)
        for _ in range(NUM_CALLS):
            stub.Predict(DIGITS, timeout=10)
        return {"daemon_first_answer_s": daemon.first_answer_s, "rss_mb": daemon.rss_mb}
