"""Run the trainer until it is told to stop: rank 0 serves, the others follow."""

from __future__ import annotations

import logging
import threading

import torch

from fedge.channels import add_address, bearer_token_interceptor, make_server, read_token
from fedge.errors import TransportError
from fedge.settings import split_address
from fedge.task import load_task
from protos.fedge.v1.trainer_pb2_grpc import add_TrainerServicer_to_server
from server.trainer.jobs import JobRunner
from server.trainer.ranks import TorchRanks, join_ranks
from server.trainer.service import TrainerService
from server.trainer.settings import TrainerConfig

NUM_HANDLERS = 4
GRACE_S = 1.0
POLL_S = 0.2

log = logging.getLogger(__name__)


def run_trainer(config: TrainerConfig, stop: threading.Event) -> None:
    """Serve or follow until the event is set.

    Raises:
        ConfigError: the address is taken, or the token or a certificate cannot be read.
        TaskError: the task cannot be refined.
        TransportError: another rank was lost.
    """
    torch.set_num_threads(config.num_threads)
    ranks = join_ranks(config.collective_timeout_s)
    try:
        runner = JobRunner(load_task(config.task.name, **config.task.options), ranks)
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
    finally:
        server.stop(GRACE_S if runner.ranks.lost.is_set() else 0).wait()
    log.info("trainer stopped")
