"""Streams of windows for tests that predict elsewhere."""

from typing import cast

from edge_client.inference import Serving
from edge_client.sample_store import SampleDatabase
from edge_client.window_stream import WindowStream
from fedge.windows import WindowSpec


def no_windows(samples: SampleDatabase) -> WindowStream:
    """Return what a device has whose task cuts no windows."""
    return WindowStream(lambda: None, cast("Serving", None), samples)


def stream_of(spec: WindowSpec, samples: SampleDatabase) -> WindowStream:
    """Return a stream of a task that cuts windows so."""
    return WindowStream(lambda: spec, cast("Serving", None), samples)
