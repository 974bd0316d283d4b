"""Rounds of plain loops: processes that share out the clients, and a mean of what they return."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.work import Work, start_weights

TrainShare = Callable[[Work, Sequence[int], list[Tensor]], list[Tensor]]


def run_rounds(work: Work, train_share: TrainShare) -> list[float]:
    """Return the seconds of each round.

    Args:
        work: what is done; ``num_processes`` of ``num_threads`` each.
        train_share: a function of a module; gets some of the clients and where each begins, and
            returns the sum of their trained weights, a tensor a parameter.
    """
    weights = start_weights(work)
    clients = range(work.num_clients)
    shares = [clients[rank :: work.num_processes] for rank in range(work.num_processes)]
    context = multiprocessing.get_context("spawn")
    seconds = []
    with ProcessPoolExecutor(
        work.num_processes, context, torch.set_num_threads, (work.num_threads,)
    ) as pool:
        for _ in range(work.num_rounds):
            began = time.perf_counter()
            # As arrays: tensors would travel through files in shared memory, which is slower.
            arrays = [weight.numpy() for weight in weights]
            futures = [pool.submit(_train, train_share, work, share, arrays) for share in shares]
            sums = [future.result() for future in futures]
            weights = [
                torch.from_numpy(sum(parts)) / work.num_clients for parts in zip(*sums, strict=True)
            ]
            seconds.append(time.perf_counter() - began)
    return seconds


def _train(
    train_share: TrainShare, work: Work, share: Sequence[int], arrays: list[Any]
) -> list[Any]:
    weights = [torch.from_numpy(array) for array in arrays]
    return [total.numpy() for total in train_share(work, share, weights)]
