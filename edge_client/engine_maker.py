"""Engines of one template's weights."""

from __future__ import annotations

from functools import partial

from edge_client.inference import Batched, Engine, Version
from fedge.params import Layout, Vector
from fedge.tflite.graphs import cut_of
from fedge.tflite.patch import Patcher
from fedge.tflite.runner import batch_sizes_of


class EngineMaker:
    """Makes engines that have the graph for one example alone, until a batch is asked of them.

    A template has a graph for one example and others for batches. The runtime packs the weights
    anew for each graph and holds Python's interpreter lock meanwhile, so that nothing answers: an
    MLP of 10 MB takes 8 to 21 ms and 30 MB for three graphs, and 2.7 ms and 10 MB for one.

    Attributes:
        patcher: of the template.
        batch_sizes: that it has graphs for, largest first, 1 left out.

    Raises:
        ModelError: the runtime refuses the template.
    """

    def __init__(self, patcher: Patcher) -> None:
        self.patcher = patcher
        self.batch_sizes = batch_sizes_of(patcher.template)
        self._cut = cut_of(patcher.template) if self.batch_sizes else None

    def engine(
        self, layout: Layout, weights: Vector, version: Version, num_threads: int = 1
    ) -> Engine:
        """Return an engine with these weights.

        Raises:
            ModelError: weights of another layout or not finite, or the runtime refuses the model.
        """
        model = self.patcher.patch(layout, weights, self._cut)
        if self._cut is None:
            return Engine(model, version, num_threads)
        batched = Batched(self.batch_sizes[-1], partial(self._cut.restore, model))
        return Engine(model, version, num_threads, batched)
