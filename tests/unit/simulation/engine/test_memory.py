"""What a worker process does with memory."""

import subprocess
import sys

_SCRIPT = """
import gc, resource
from simulation.engine.memory import keep_memory
import torch
torch.set_num_threads(1)

def faults_of_chunks():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        chunk = [torch.zeros(1_000_000) for _ in range(5)]
        del chunk
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults_of_chunks()
keep_memory()
faults_of_chunks()
print(before, faults_of_chunks(), gc.get_freeze_count(), gc.get_threshold()[0])
"""


def test_chunks_reuse_the_pages_of_the_last_one() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True
    ).stdout
    before, after, num_frozen, threshold = map(int, found.split())
    assert num_frozen > 0
    assert threshold > 10_000
    if sys.platform == "linux":
        assert after < before / 10
