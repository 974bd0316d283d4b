import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, TCPStore, distributed_c10d  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore

from fedge.errors import TransportError
from server.trainer import ranks
from server.trainer.ranks import Solo, TorchRanks, join_ranks

WEIGHTS = np.zeros(3, np.float32)
BUFFER = torch.zeros(3)


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, None, True)


def _rank(store: TCPStore, rank: int, size: int) -> TorchRanks:
    client = TCPStore("127.0.0.1", store.port, None, False)
    return TorchRanks(PrefixStore("test", client), rank, size)


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = join_ranks(1)
    assert isinstance(alone, Solo)
    buffer = torch.ones(2)
    alone.announce("job", WEIGHTS)
    alone.add_up(buffer)
    alone.close()
    assert (alone.rank, alone.size, buffer.tolist()) == (0, 1, [1.0, 1.0])


def test_ranks_that_cannot_meet_say_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TransportError, match="check torchrun's arguments"):
        join_ranks(1)


def test_all_groups_wait_for_as_long_as_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = iter([(HashStore(), 0, 1)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "rendezvous", lambda *_, **__: meeting)
    monkeypatch.setattr(distributed_c10d, "default_pg_timeout", timedelta(hours=1))
    joined = join_ranks(7)
    groups = (distributed_c10d._get_default_group(), dist.new_group())
    found = [each._get_backend(torch.device("cpu")).options._timeout for each in groups]
    joined.close()
    assert found == [timedelta(seconds=7)] * 2


def test_a_silent_rank_is_named_the_job_is_skipped_and_the_others_go_on(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "READY_S", 0.5)
    leader, follower = _rank(store, 0, 3), _rank(store, 1, 3)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(follower.receive, BUFFER, threading.Event())
        with pytest.raises(TransportError, match=r"ranks \[2\] did not answer in 0\.5 s"):
            leader.announce("job", WEIGHTS)
        leader.close()
        assert received.result(timeout=20) is None


def test_a_follower_leaves_when_it_is_told_to_stop(store: TCPStore) -> None:
    leader, follower = _rank(store, 0, 2), _rank(store, 1, 2)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(follower.receive, BUFFER, stop)
        stop.set()
        assert received.result(timeout=20) is None
    leader.close()


def test_a_follower_notices_that_rank_0_fell_silent(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "SILENCE_S", 0.5)
    monkeypatch.setattr(ranks, "HEARTBEAT_S", 0.1)
    with pytest.raises(TransportError, match=r"rank 0 of the trainer was silent for 0\.5 s"):
        _rank(store, 1, 2).receive(BUFFER, threading.Event())


def test_a_beating_rank_0_is_waited_for_longer_than_the_silence_allowed(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "SILENCE_S", 1.0)
    monkeypatch.setattr(ranks, "HEARTBEAT_S", 0.05)
    leader, follower = _rank(store, 0, 2), _rank(store, 1, 2)
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        received = pool.submit(follower.receive, BUFFER, threading.Event())
        assert not threading.Event().wait(2.0)  # twice the silence
        assert not received.done()
        leader.close()
        assert received.result(timeout=20) is None
        assert time.monotonic() - started >= 2.0
