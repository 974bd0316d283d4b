"""A model for tests of what surrounds one."""

import numpy as np

from edge_client.inference import Array, Prediction, Version


class SummingModel:
    """Answers with the sum, unless it is told to fail."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def predict(self, inputs: Array) -> Prediction:
        """Answer, or raise what it was told to."""
        if self.error is not None:
            raise self.error
        return Prediction(np.array([inputs.sum()], np.float32), Version(4, "abc"), 7.5)
