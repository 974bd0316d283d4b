"""Run the trainer until it is told to stop: rank 0 serves, the others follow."""

from __future__ import annotations

import logging
import os
import threading

import torch

from fedge.channels import add_address, bearer_token_interceptor, make_server, read_token
from fedge.errors import ConfigError, TransportError
from fedge.settings import split_address
from fedge.task import load_task
from protos.fedge.v1.trainer_pb2_grpc import add_TrainerServicer_to_server
from server.trainer.checkpoints import Checkpoints, DcpCheckpoints, NoCheckpoints
from server.trainer.jobs import JobRunner
from server.trainer.parallel.build import build_parallel
from server.trainer.ranks import Ranks, TorchRanks, join_ranks
from server.trainer.refining import ProxyData, Refining
from server.trainer.service import TrainerService
from server.trainer.settings import TrainerConfig

NUM_HANDLERS = 4
GRACE_S = 1.0
POLL_S = 0.2
STATUS_HANGS = 70

log = logging.getLogger(__name__)


def run_trainer(config: TrainerConfig, stop: threading.Event) -> None:
    """Serve or follow until the event is set.

    Raises:
        ConfigError: the address is taken, or the token or a certificate cannot be read.
        TaskError: the task cannot be refined.
        TransportError: another rank was lost.
    """
    torch.set_num_threads(config.num_threads)
    device = find_device(config.device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    ranks = join_ranks(config.collective_timeout_s, backend)
    try:
        runner = JobRunner(_refining(config, ranks, device))
    except BaseException:
        ranks.close()
        raise
    try:
        if isinstance(ranks, TorchRanks) and ranks.rank > 0:
            runner.follow(stop)
        else:
            _serve(config, runner, stop)
    finally:
        runner.close()


def find_device(name: str) -> torch.device:
    """Return this process' device; torchrun numbers the processes of a machine.

    Raises:
        ConfigError: there is no GPU for this process.
    """
    place = int(os.environ.get("LOCAL_RANK", "0"))
    num_gpus = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if place >= num_gpus:
        raise ConfigError(
            f"process {place} of this machine has no GPU, there are {num_gpus}: start fewer with "
            "--nproc-per-node, or set device to cpu",
            key="device",
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def _refining(config: TrainerConfig, ranks: Ranks, device: torch.device) -> Refining:
    task = load_task(config.task.name, **config.task.options)
    data = task.cloud_data()
    checkpoints: Checkpoints = NoCheckpoints()
    if config.checkpoint_dir is not None:
        checkpoints = DcpCheckpoints(config.checkpoint_dir, config.checkpoint_interval_s)
    model = build_parallel(task, config.mesh, ranks.size, device)
    setting = f"{config.task}, {config.mesh.precision}"
    proxy = ProxyData(data.proxy, data.unlabelled)
    return Refining(task, model, proxy, ranks, checkpoints, setting)


def _serve(config: TrainerConfig, runner: JobRunner, stop: threading.Event) -> None:
    token = [] if config.token_file is None else [read_token(config.token_file)]
    server = make_server(NUM_HANDLERS, interceptors=[bearer_token_interceptor(t) for t in token])
    add_TrainerServicer_to_server(TrainerService(runner, config.max_model_bytes), server)
    port = add_address(server, config.address, config.tls)
    host, _ = split_address(config.address, "address")
    server.start()
    log.info(
        "task %s, %d ranks, %d proxy examples",
        runner.task.name,
        runner.ranks.size,
        runner.num_examples,
    )
    log.info("trainer ready on %s:%d", host, port)
    try:
        while not stop.wait(POLL_S):
            if runner.ranks.lost.is_set():
                raise TransportError("the trainer's ranks are out of step: start all of them anew")
            if runner.overdue_s > config.collective_timeout_s:
                log.error("a refinement hangs, %.0f s past its deadline", runner.overdue_s)
                os._exit(STATUS_HANGS)  # its thread cannot be ended
    finally:
        server.stop(GRACE_S if runner.ranks.lost.is_set() else 0).wait()
    log.info("trainer stopped")
