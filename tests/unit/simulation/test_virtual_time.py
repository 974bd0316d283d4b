"""Virtual time goes on where it stood, and knows who is still at work."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.config import build
from fedge.errors import CheckpointError
from fedge.messages import WeightsRequest
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.training.local import LocalTrainer
from simulation.settings import SimulateConfig
from simulation.virtual_time import VirtualTime
from tests.tiny_task import TinyTask

NUM_CLIENTS = 30
ALL = np.arange(NUM_CLIENTS)
STEADY = {
    "preset": "lab",
    "examples_per_s": [10.0],
    "speed_sigma": [0.0],
    "jitter_sigma": [0.0],
    "bandwidth_sigma": [0.0],
}


class BrokenTask(TinyTask):
    """Client 4 has no readable examples."""

    def client_data(self, client: int, num_clients: int) -> Examples:
        if client == 4:
            raise ValueError("broken")
        return super().client_data(client, num_clients)


class SizedTask(BrokenTask):
    """Tells sizes without making examples."""

    def num_examples(self, client: int, num_clients: int) -> int:
        return 10 * (client + 1)


def make(
    run_dir: Path, task: TinyTask | None = None, last_committed: int = 0, **devices: Any
) -> VirtualTime:
    tree = {
        "num_clients": NUM_CLIENTS,
        "server": {"run_dir": str(run_dir)},
        "devices": {**STEADY, **devices},
    }
    config = build(SimulateConfig, tree)
    return VirtualTime(config, task or TinyTask(), last_committed=last_committed)


def request(round: int = 1, codec: str = "raw", local_epochs: int = 1) -> WeightsRequest:
    trainer = LocalTrainer(TinyTask())
    hyper = Hyperparameters(local_epochs=local_epochs)
    weights = trainer.initial_weights(0)
    return WeightsRequest("run", round, 9, trainer.layout, weights, hyper, codec=codec)


def test_work_is_the_examples_that_are_trained_on_times_the_epochs(tmp_path: Path) -> None:
    once = make(tmp_path).ask(ALL, request())
    # 24 examples, a tenth held out, ten a second; the network takes about nothing.
    np.testing.assert_allclose(once.finish_s, 2.16, atol=0.01)
    twice = make(tmp_path).ask(ALL, request(local_epochs=2))
    np.testing.assert_allclose(twice.finish_s, 4.32, atol=0.01)


def test_sizes_are_asked_for_where_the_task_knows_them(tmp_path: Path) -> None:
    schedule = make(tmp_path, SizedTask()).ask(ALL, request())
    np.testing.assert_allclose(schedule.finish_s, 0.9 * (ALL + 1), atol=0.01)


def test_a_client_whose_examples_cannot_be_read_has_nothing_to_do(tmp_path: Path) -> None:
    schedule = make(tmp_path, BrokenTask()).ask(ALL, request())
    assert schedule.finish_s[4] < 0.01
    assert (np.delete(schedule.finish_s, 4) > 2).all()


def test_what_travels_is_the_model_and_the_encoded_update(tmp_path: Path) -> None:
    times, raw = make(tmp_path), request()
    size_bytes = raw.layout.size_bytes
    assert set(times.ask(ALL, raw).bytes_down.tolist()) == {size_bytes}
    assert set(times.ask(ALL, raw).bytes_up.tolist()) == {size_bytes}
    assert (times.ask(ALL, request(codec="int8")).bytes_up < 0.5 * size_bytes).all()


def test_whoever_is_at_work_is_not_free_until_it_is_done(tmp_path: Path) -> None:
    times = make(tmp_path, SizedTask())
    times.note_busy(times.ask(ALL, request()))
    assert not times.is_free(ALL).any()
    times.clock.sleep(9.5)  # the first ten are done
    assert np.flatnonzero(times.is_free(ALL)).tolist() == list(range(10))
    assert times.is_free(np.array([25, 3, 9])).tolist() == [False, True, True]
    times.clock.sleep(100.0)
    assert times.is_free(ALL).all()


def test_a_resumed_run_goes_on_at_its_last_committed_round(tmp_path: Path) -> None:
    times = make(tmp_path, SizedTask())
    times.note_busy(times.ask(ALL, request()))
    for round in (1, 2, 3):
        times.clock.sleep(5.0)
        times.keep(round)
    for committed, now_s, num_free in ((3, 15.0, 16), (2, 10.0, 11)):
        resumed = make(tmp_path, SizedTask(), last_committed=committed)
        assert resumed.clock.monotonic() == now_s
        assert resumed.is_free(ALL).sum() == num_free
    assert make(tmp_path, SizedTask()).clock.monotonic() == 0.0
    assert make(tmp_path, SizedTask()).is_free(ALL).all()


def test_where_no_time_passes_nothing_is_kept_and_nobody_is_busy(tmp_path: Path) -> None:
    times = make(tmp_path, BrokenTask(), preset="none", examples_per_s=[])
    schedule = times.ask(ALL, request())
    assert (schedule.finish_s == 0).all()
    times.note_busy(schedule)
    assert times.is_free(ALL).all()
    times.keep(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["no json", "[]", '{"1": {}}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "virtual-time.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"virtual-time\.json"):
        make(tmp_path, last_committed=1)
