import errno
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from edge_client.process_limits import is_out_of_memory, training_cores
from edge_client.settings import TrainingProcessConfig
from fedge.config import build
from fedge.errors import ConfigError


def cores(text: str, available: set[int], num_threads: int = 1) -> set[int]:
    return training_cores(TrainingProcessConfig(cores=text, num_threads=num_threads), available)


def test_training_takes_the_last_cores() -> None:
    assert cores("auto", {0, 1, 2, 3}) == {3}
    assert cores("auto", {0, 1, 4, 7}, num_threads=2) == {4, 7}
    assert cores("auto", {0}) == {0}
    assert cores("auto", {0, 1}, num_threads=4) == {0, 1}


def test_cores_can_be_named() -> None:
    assert cores("all", {0, 1, 2}) == {0, 1, 2}
    assert cores("0, 2-3", {0, 1, 2, 3}) == {0, 2, 3}
    assert cores("0,7", {0, 1}) == {0}
    with pytest.raises(ConfigError, match=r"training\.cores: none of 7 is among .* \[0, 1\]"):
        cores("7", {0, 1})


@pytest.mark.parametrize("text", ["", "last", "3-1", "1,,2", "-1"])
def test_cores_that_cannot_be_read_are_refused_by_their_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.cores"):
        build(TrainingProcessConfig, {"cores": text}, "training.")


def test_an_allocation_that_failed_is_known_by_what_libraries_raise() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 50)
    assert is_out_of_memory(of_torch.value)
    assert is_out_of_memory(of_numpy.value)
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("bad_alloc"))


LIMITED = """
import json, os, sys
from edge_client.process_limits import lift_memory_limit, limit_memory, step_back
from edge_client.settings import TrainingProcessConfig
config = TrainingProcessConfig(nice=7, max_memory_mib=200)
step_back(config)
limit_memory(config)
try:
    bytearray(300 << 20)
    said = "allocated"
except MemoryError:
    said = "refused"
lift_memory_limit()
bytearray(300 << 20)
try:
    limit_memory(TrainingProcessConfig(max_memory_mib=1))
except Exception as error:
    too_small = str(error)
cores = len(os.sched_getaffinity(0))
print(json.dumps([os.nice(0), said, cores, too_small, open("/proc/self/oom_score_adj").read()]))
"""


def test_a_process_keeps_to_its_place() -> None:
    output = subprocess.check_output([sys.executable, "-c", LIMITED], text=True)
    nice, said, num_cores, too_small, score = json.loads(output)
    assert (nice, said, num_cores) == (7, "refused", 1)
    assert "training.max_memory_mib: 1 MiB are too few" in too_small
    assert int(score) == 1000
