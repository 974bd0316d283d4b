from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.inference import Engine, Serving, Version
from edge_client.readings_service import ReadingsServer, serve_readings
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig
from edge_client.tensors import make_tensor, read_tensor
from edge_client.window_stream import Fed, Feed, WindowStream
from fedge.channels import client_channel
from fedge.errors import InvalidInput, ModelError, StoreError, TransportError
from fedge.settings import TlsConfig
from fedge.windows import Readings, WindowSpec, cut_windows
from protos.fedge.v1 import readings_pb2, readings_pb2_grpc

SPEC = WindowSpec(size=4, hop=2, mean=(1.0, 2.0), scale=(2.0, 4.0))
CONFIG = StoreConfig(holdout_fraction=0.0)


class SummingEngine:
    """Stands in for an engine: answers a window with its sum."""

    has_taken_batches = False

    version = Version(3, "digest")
    input_shape = (SPEC.size, SPEC.num_channels)

    def predict(self, inputs: Any) -> Any:
        return inputs.sum(keepdims=True)


def serving() -> Serving:
    return Serving(cast("Engine", SummingEngine()))


def readings_of(first: int, number: int) -> Readings:
    """Readings whose values follow from their numbers."""
    sequences = first + np.arange(number, dtype=np.int64)
    values = np.stack([np.sin(sequences), np.cos(3 * sequences)], axis=1)
    return Readings(values, sequences, sequences / 10)


@pytest.fixture
def samples(tmp_path: Path) -> Iterator[SampleDatabase]:
    with SampleDatabase(tmp_path / "samples.db", CONFIG) as database:
        yield database


@pytest.fixture
def stream(samples: SampleDatabase) -> WindowStream:
    return WindowStream(lambda: SPEC, serving(), samples)


def test_a_window_is_predicted_and_stored_as_the_model_saw_it(
    stream: WindowStream, samples: SampleDatabase
) -> None:
    assert stream.feed("s", readings_of(0, 3)) == Fed([], 3, True)
    fed = stream.feed("s", readings_of(3, 3))
    assert [each.sample_id for each in fed.windows] == ["s/0/0", "s/0/2"]
    assert [each.window.first for each in fed.windows] == [0, 2]
    cut = cut_windows(readings_of(0, 6), SPEC)
    for each, inputs in zip(fed.windows, cut.inputs, strict=True):
        assert each.window.inputs.tobytes() == inputs.tobytes()
        assert each.prediction.output[0] == inputs.sum()
        assert each.prediction.version.round == 3
        samples.label(each.sample_id, 1)
    assert samples.labelled("train").inputs.tobytes() == cut.inputs.tobytes()


@settings(max_examples=30)  # each opens a database a few times
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_restarts_and_readings_sent_again_lose_and_double_no_window(
    tmp_path_factory: pytest.TempPathFactory, parts: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("stream") / "samples.db"
    seen: list[str] = []
    for number in parts:
        with SampleDatabase(path, CONFIG) as samples:
            stream = WindowStream(lambda: SPEC, serving(), samples)
            resume = stream.feed("s").next_sequence
            again = data.draw(st.integers(0, resume))
            fed = stream.feed("s", readings_of(again, resume - again + number))
            seen += [each.sample_id for each in fed.windows]
    windows = cut_windows(readings_of(0, sum(parts)), SPEC)
    assert seen == [f"s/0/{last - SPEC.size + 1}" for last in windows.last]
    with SampleDatabase(path, CONFIG) as samples:
        assert samples.counts() == (0, len(seen))
        assert samples.figures().duplicates == 0


def test_sources_have_streams_of_their_own(stream: WindowStream) -> None:
    stream.feed("a", readings_of(0, 3))
    assert stream.feed("b", readings_of(7, 1)).next_sequence == 8
    assert [each.sample_id for each in stream.feed("a", readings_of(3, 1)).windows] == ["a/0/0"]
    assert stream.counts()["a"].windows == 1


def test_windows_that_are_cut_otherwise_have_ids_of_their_own(
    stream: WindowStream, samples: SampleDatabase
) -> None:
    stream.feed("s", readings_of(0, 4))
    updated = WindowStream(lambda: replace(SPEC, mean=(0.0, 0.0)), serving(), samples)
    assert updated.feed("s").next_sequence == 0
    [window] = updated.feed("s", readings_of(0, 4)).windows
    assert window.sample_id == "s/1/0"
    assert samples.counts() == (0, 2)


def test_of_too_many_sources_the_last_ones_are_known_before_and_after_a_restart(
    stream: WindowStream, samples: SampleDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sample_store", "window_stream"):
        monkeypatch.setattr(f"edge_client.{module}.MAX_STREAMS", 3)
    for name in ("a", "b", "c", "a", "d"):
        stream.feed(name, readings_of(stream.feed(name).next_sequence, 1))
    stream.take_in([Feed("e", readings_of(0, 1))], lambda _: None)
    again = WindowStream(lambda: SPEC, serving(), samples)
    assert again.takes_readings()
    for each in (stream, again):
        assert list(each.counts()) == ["a", "d", "e"]
        assert each.feed("a").next_sequence == 2


def test_a_problem_of_the_disk_is_over_once_readings_are_taken_in(
    stream: WindowStream, samples: SampleDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise StoreError("the disk is read-only")

    with monkeypatch.context() as broken:
        broken.setattr(samples, "stream_states", fail)
        with pytest.raises(StoreError):
            stream.take_in([Feed("s", readings_of(0, 4))], lambda _: None)
    assert "read-only" in stream.problem
    stream.take_in([Feed("s", readings_of(0, 4))], lambda _: None)
    assert stream.problem == ""


def test_without_a_model_nothing_is_taken(samples: SampleDatabase) -> None:
    models = Serving()
    stream = WindowStream(lambda: SPEC, models, samples)
    stream.feed("s", readings_of(0, 3))
    with pytest.raises(ModelError, match="no model yet"):
        stream.feed("s", readings_of(3, 1))
    assert stream.feed("s").next_sequence == 3
    models.swap(cast("Engine", SummingEngine()))
    assert len(stream.feed("s", readings_of(3, 1)).windows) == 1


def test_a_failing_database_stops_no_answer_and_is_said(
    stream: WindowStream, samples: SampleDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("samples.db: disk full")

    with monkeypatch.context() as broken:
        broken.setattr(samples, "add_many", fail)
        fed = stream.feed("s", readings_of(0, 4))
        assert (len(fed.windows), fed.next_sequence, fed.stored) == (1, 4, False)
        assert stream.problem == "samples.db: disk full"
    fed = stream.feed("s", readings_of(4, 2))
    assert (len(fed.windows), fed.stored, stream.problem) == (1, True, "")


def test_places_that_could_not_be_read_at_first_are_read_later(
    samples: SampleDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("samples.db: disk full")

    WindowStream(lambda: SPEC, serving(), samples).feed("a", readings_of(0, 3))
    stream = WindowStream(lambda: SPEC, serving(), samples)
    with monkeypatch.context() as broken:
        broken.setattr(samples, "add_many", fail)
        broken.setattr(samples, "stream_states", fail)
        assert stream.feed("b", readings_of(0, 3)).next_sequence == 3
        assert stream.problem
    assert len(stream.feed("a", readings_of(3, 1)).windows) == 1
    assert len(stream.feed("b", readings_of(3, 1)).windows) == 1
    assert stream.problem == ""


def test_a_task_without_windows_takes_no_readings(samples: SampleDatabase) -> None:
    stream = WindowStream(lambda: None, serving(), samples)
    assert not stream.takes_readings()
    with pytest.raises(ModelError, match="no window_spec"):
        stream.feed("s", readings_of(0, 1))


@pytest.mark.parametrize("source", ["", "x" * 209])
def test_a_source_has_a_name_of_bounded_length(stream: WindowStream, source: str) -> None:
    with pytest.raises(InvalidInput, match="1 to 208 bytes"):
        stream.feed(source, readings_of(0, 1))


class Sensor:
    """A client of the readings service."""

    def __init__(self, socket: Path) -> None:
        self.channel = client_channel(f"unix:{socket}", TlsConfig())
        self.stub = readings_pb2_grpc.ReadingsStub(self.channel)

    def feed(self, readings: Readings | None) -> readings_pb2.FeedResponse:
        request = readings_pb2.FeedRequest(source="s")
        if readings is not None:
            request.first_sequence = int(readings.sequences[0])
            request.times_s.extend(readings.times_s.tolist())
            request.values.CopyFrom(make_tensor(readings.values))
        return self.stub.Feed(request, timeout=30, wait_for_ready=True)


def test_the_service_answers_with_windows_and_where_to_go_on(
    tmp_path: Path, stream: WindowStream, samples: SampleDatabase
) -> None:
    server = ReadingsServer(stream, tmp_path / "readings.sock")
    server.start()
    sensor = Sensor(tmp_path / "readings.sock")
    assert sensor.feed(None).next_sequence == 0
    response = sensor.feed(readings_of(0, 6))
    assert [window.sample_id for window in response.windows] == ["s/0/0", "s/0/2"]
    assert [window.first_sequence for window in response.windows] == [0, 2]
    assert response.windows[1].end_s == 0.5
    assert (response.next_sequence, response.stored) == (6, True)
    raw = readings_of(0, 4).values.astype(np.float32)
    expected = SPEC.normalise(raw).sum()
    assert read_tensor(response.windows[0].output, "output")[0] == expected
    assert response.windows[0].model.round == 3
    assert samples.counts() == (0, 2)
    with pytest.raises(grpc.RpcError) as caught:
        sensor.stub.Feed(readings_pb2.FeedRequest(source="s", values=make_tensor([1.0])))
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "expected float32 [N, C], got float32 [1]" in error.details()
    sensor.channel.close()
    server.stop(0)
    assert not (tmp_path / "readings.sock").exists()


def test_nothing_is_served_for_a_task_without_windows_or_after_a_stop(
    tmp_path: Path, samples: SampleDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> WindowSpec:
        raise TransportError("the training process died")

    for load in (lambda: None, fail, lambda: SPEC):
        server = ReadingsServer(WindowStream(load, serving(), samples), tmp_path / "r.sock")
        if load is not fail:
            server.stop(0)
        server.start()
        server._thread.join(30)
        assert not (tmp_path / "r.sock").exists()
    assert caplog.text.count("takes no readings: the training process died") == 1


def test_readings_without_a_model_are_told_so(tmp_path: Path, samples: SampleDatabase) -> None:
    server = serve_readings(WindowStream(lambda: SPEC, Serving(), samples), tmp_path / "r.sock")
    sensor = Sensor(tmp_path / "r.sock")
    with pytest.raises(grpc.RpcError) as caught:
        sensor.feed(readings_of(0, 4))
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    sensor.channel.close()
    server.stop(0).wait()
