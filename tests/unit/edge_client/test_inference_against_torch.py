import numpy as np
import pytest
import torch

from fedge.tasks.digits import Digits
from fedge.weights import write_vector
from tests.unit.edge_client.engines import LAYOUT, make_engine, make_inputs, make_weights


@pytest.mark.parametrize("size", [1, 5, 32, 50])
def test_answers_equal_those_of_torch(size: int) -> None:
    model = Digits().build_model()
    write_vector(model, LAYOUT, make_weights(3))
    inputs = make_inputs(size)
    with torch.inference_mode():
        expected = model(torch.from_numpy(inputs)).numpy()
    engine = make_engine(3)
    scale = np.abs(expected).max()
    assert np.abs(engine.predict(inputs) - expected).max() / scale < 1e-5
    one_by_one = np.stack([engine.predict(example) for example in inputs])
    assert np.abs(one_by_one - expected).max() / scale < 1e-5
