"""The demo's devices: filling their stores before, reading what they left behind after."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from edge_client.sample_store import SampleDatabase
from edge_client.settings import EdgeConfig
from fedge.channels import client_channel
from fedge.config import build
from fedge.settings import TlsConfig
from fedge.task import Task
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc
from simulation.demo.plan import DemoPlan
from simulation.jsonl import read_jsonl

STATUS_DEADLINE_S = 2.0


@dataclass(frozen=True)
class DeviceReport:
    """What one device says of itself, on itself.

    Attributes:
        model_digest: version it serves; empty where it did not answer.
        epsilon: ε spent, all rounds together; None where it did not answer.
        train_seconds: of each round it trained in.
    """

    name: str
    model_digest: str
    epsilon: float | None
    train_seconds: dict[int, float]


def fill_stores(plan: DemoPlan, task: Task) -> None:
    """Put each device's share of the data into its own sample store."""
    num_devices = plan.options.num_devices
    for device in range(num_devices):
        config = build(EdgeConfig, plan.device_config(device))
        examples = task.client_data(device, num_devices)
        with SampleDatabase(config.samples_path, config.store) as samples:
            for index in range(len(examples)):
                samples.add(f"digit-{index}", examples.inputs[index], examples.targets[index])


def device_version(plan: DemoPlan, device: int) -> str:
    """Return the digest of the version a device serves now; empty if it does not answer."""
    status = _status(plan, device)
    return status.model.digest if status is not None else ""


def report_device(plan: DemoPlan, device: int) -> DeviceReport:
    """Ask a device how it is and read its round log."""
    status = _status(plan, device)
    trained = read_jsonl(plan.device_dir(device) / "rounds.jsonl")
    return DeviceReport(
        name=plan.device_name(device),
        model_digest=status.model.digest if status is not None else "",
        epsilon=status.epsilon if status is not None else None,
        train_seconds={entry["round"]: entry["train_seconds"] for entry in trained},
    )


def _status(plan: DemoPlan, device: int) -> inference_pb2.StatusResponse | None:
    with client_channel(f"unix:{plan.device_socket(device)}", TlsConfig()) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        try:
            return stub.Status(inference_pb2.StatusRequest(), timeout=STATUS_DEADLINE_S)
        except grpc.RpcError:
            return None
