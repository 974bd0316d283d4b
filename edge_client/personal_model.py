"""Predictions with this device's personal layers: the published model, its own head in it."""

from __future__ import annotations

import logging

from edge_client.inference import Serving
from edge_client.model_store import Compose, ModelStore
from edge_client.replies import ReplyStore
from edge_client.round_memory import with_personal
from fedge.errors import ModelError
from fedge.params import Layout, Vector

_log = logging.getLogger(__name__)


def compose_from(replies: ReplyStore) -> Compose:
    """Return what puts the personal part that a run left in the replies into its weights."""

    def compose(run_name: str, layout: Layout, weights: Vector) -> Vector:
        return with_personal(replies.state(run_name), layout, weights)

    return compose


class PersonalModel:
    """Swaps the served engine for one with the newest personal part.

    Args:
        replies: where a trained round leaves the personal part.
        store: composes with it what it loads (`compose_from`).
        serving: gets the engine.
        num_threads: of the engine.
    """

    def __init__(
        self, replies: ReplyStore, store: ModelStore, serving: Serving, num_threads: int
    ) -> None:
        self._replies = replies
        self._store = store
        self._serving = serving
        self._num_threads = num_threads

    def refresh(self, run_name: str) -> None:
        """Predict from now on with what a round made of the personal layers, if there are any."""
        if self._replies.state(run_name).get("personal") is None:
            return
        try:
            self._serving.reload(lambda: self._store.load_engine(self._num_threads))
        except ModelError as error:  # the model as shipped knows nothing of this run
            _log.info("personal layers wait for a published version: %s", error)
