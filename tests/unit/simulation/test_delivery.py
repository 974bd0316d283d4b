"""Answers to messages come when the device is done, and not at all where it never is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedge.clock import clock_of
from fedge.config import build
from fedge.flower_internals import set_task_identity
from fedge.messages import WeightsRequest, encode_request
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.training.local import LocalTrainer
from simulation.delivery import AtOnce, InVirtualTime
from simulation.nodes import node_of
from simulation.round_figures import RoundFigures
from simulation.settings import SimulateConfig
from simulation.virtual_time import VirtualTime
from tests.tiny_task import TinyTask

NUM_CLIENTS = 8
TTL_S = 6.0
STEADY = {
    "preset": "lab",
    "examples_per_s": [10.0],
    "speed_sigma": [0.0],
    "jitter_sigma": [0.0],
    "bandwidth_sigma": [0.0],
}


class SizedTask(TinyTask):
    """Client i has about i + 1 seconds of work."""

    def num_examples(self, client: int, num_clients: int) -> int:
        return 11 * (client + 1)

    def client_data(self, client: int, num_clients: int) -> Examples:
        raise AssertionError("sizes are known")


def make(tmp_path: Path, **devices: Any) -> tuple[InVirtualTime, RoundFigures]:
    tree = {
        "num_clients": NUM_CLIENTS,
        "server": {"run_dir": str(tmp_path)},
        "devices": {**STEADY, **devices},
    }
    times = VirtualTime(build(SimulateConfig, tree), SizedTask(), last_committed=0)
    figures = RoundFigures()
    return InVirtualTime(times, NUM_CLIENTS, figures), figures


def messages_to(clients: Sequence[int], message_type: str = "train") -> dict[str, Message]:
    """Return a message of a round for each client, under a name that tells which."""
    trainer = LocalTrainer(TinyTask())
    weights, hyper = trainer.initial_weights(0), Hyperparameters(local_epochs=1)
    request = WeightsRequest("run", 1, 9, trainer.layout, weights, hyper, codec="raw")
    set_task_identity(run_id=1, node_id=1)
    content = encode_request(request)
    return {
        f"{message_type}-{client}": Message(content, node_of(client), message_type, ttl=TTL_S)
        for client in clients
    }


def test_at_once_everybody_answers_as_asked() -> None:
    delivery = AtOnce(3)
    assert list(delivery.nodes()) == [node_of(client) for client in range(3)]
    asked = messages_to([2, 0])
    assert list(delivery.ask(asked)) == ["train-2", "train-0"]
    assert delivery.arrived(["train-2", "train-0"]) == ["train-2", "train-0"]


def test_answers_come_when_the_devices_are_done_first_come_first(tmp_path: Path) -> None:
    delivery, _ = make(tmp_path)
    ids = list(delivery.ask(messages_to([3, 0, 1])))
    assert ids == ["train-3", "train-0", "train-1"]
    assert delivery.arrived(ids) == []
    delivery.clock.sleep(2.5)
    assert delivery.arrived(ids) == ["train-0", "train-1"]
    delivery.clock.sleep(2.5)
    assert delivery.arrived(["train-3"]) == ["train-3"]


def test_what_comes_after_the_message_has_expired_never_comes(tmp_path: Path) -> None:
    delivery, _ = make(tmp_path)
    assert list(delivery.ask(messages_to([4, 5, 6]))) == ["train-4", "train-5"]


def test_devices_that_fail_never_answer(tmp_path: Path) -> None:
    delivery, _ = make(tmp_path, dropout_rate=[1.0])
    assert list(delivery.ask(messages_to(range(4)))) == []


def test_evaluations_take_no_time(tmp_path: Path) -> None:
    delivery, _ = make(tmp_path, dropout_rate=[1.0])
    ids = list(delivery.ask(messages_to([7, 1], "evaluate")))
    assert delivery.arrived(ids) == ["evaluate-7", "evaluate-1"]


def test_only_those_who_are_there_are_connected(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("client,start_s,end_s\n" + "".join(f"{i},{10 * i},100\n" for i in range(8)))
    delivery, _ = make(tmp_path, availability={"name": "trace", "trace": str(trace)})
    delivery.clock.sleep(25.0)
    assert list(delivery.nodes()) == [node_of(client) for client in (0, 1, 2)]
    assert clock_of(delivery) is delivery.clock


def test_a_round_counts_who_was_late_and_what_travelled(tmp_path: Path) -> None:
    delivery, figures = make(tmp_path)
    ids = list(delivery.ask(messages_to([0, 1, 2, 3])))
    delivery.clock.sleep(2.5)
    delivery.arrived(ids)
    delivery.close_round(2.0)
    found = figures.take(delivery.clock.monotonic())
    size_bytes = LocalTrainer(TinyTask()).layout.size_bytes
    assert found["outcomes"] == {"ok": 2, "late": 2}
    assert found["bytes_down"] == found["bytes_up"] == 4 * size_bytes
    delivery.close_round(2.0)
    assert figures.take(2.5)["outcomes"] == {}
