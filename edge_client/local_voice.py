"""What this device's own labels say of two versions: is the new one worse, surely?"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.inference import Engine
from edge_client.settings import ModelsConfig
from fedge.errors import InvalidInput, StoreError
from fedge.task import Examples, SampleStore

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
MAX_EXAMPLES = 512  # the newest; more would say little more and keep the processor busy
_ONE_SIDED_95 = 1.645


@dataclass(frozen=True)
class Comparison:
    """Two versions on the same labelled samples.

    Attributes:
        metric, metric_before: means of the new and of the old version.
        reason: why the new one must not serve; empty if it may.
    """

    metric: float
    metric_before: float
    num_labelled: int
    reason: str = ""


class LocalVoice:
    """Compares versions on the labelled holdout, which nothing trains on.

    Args:
        samples: the device's own.
    """

    def __init__(self, samples: SampleStore, config: ModelsConfig) -> None:
        self._samples = samples
        self._max_drop = config.max_metric_drop
        self._min_labelled = config.min_labelled

    def compare(self, new: Engine, old: Engine) -> Comparison | None:
        """Return what the labels say; None where they are too few or cannot be compared.

        One example at a time, so that an engine that serves is never held for longer.
        """
        if not self._max_drop:
            return None
        try:
            examples = self._samples.labelled("holdout")
        except StoreError as error:
            log.warning("versions are not compared: %s", error)
            return None
        examples = examples.subset(np.arange(len(examples))[-MAX_EXAMPLES:])
        if len(examples) < self._min_labelled:
            return None
        try:
            after, before = (_scores(engine, examples) for engine in (new, old))
        except InvalidInput:
            return None
        return None if after is None or before is None else self._judge(after, before)

    def _judge(self, after: Array, before: Array) -> Comparison:
        drops = before - after
        drop = float(drops.mean())
        least = drop - _ONE_SIDED_95 * float(drops.std(ddof=1)) / math.sqrt(len(drops))
        metric, metric_before = float(after.mean()), float(before.mean())
        reason = ""
        if not math.isfinite(metric) or (drop > self._max_drop and least > 0):
            reason = (
                f"on {len(drops)} labelled samples of this device its metric is {metric:.3f}, that "
                f"of the version before {metric_before:.3f}"
            )
        return Comparison(metric, metric_before, len(drops), reason)


def _scores(engine: Engine, examples: Examples) -> Array | None:
    """Return one score an example, higher is better; None where labels and outputs do not fit.

    Whole numbers are classes: 1 where the largest output is the label's (its share, where a label
    has several places). Other numbers are values: their mean score is R².
    """
    inputs = examples.inputs.astype(engine.input_dtype)
    outputs = np.stack([engine.predict(example) for example in inputs])
    targets = examples.targets
    if targets.dtype.kind in "iu":
        if outputs.ndim != targets.ndim + 1:
            return None
        right = outputs.argmax(axis=-1) == targets
        return np.asarray(right.reshape(len(right), -1).mean(axis=1))
    if outputs.size != targets.size:
        return None
    errors = (outputs.reshape(targets.shape).astype(np.float64) - targets) ** 2
    spread = float(np.var(targets))
    if not spread:
        return None
    return np.asarray(1.0 - errors.reshape(len(errors), -1).mean(axis=1) / spread)
