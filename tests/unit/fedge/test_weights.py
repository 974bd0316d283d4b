from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedge.errors import TaskError
from fedge.tasks.digits import Digits
from fedge.weights import build_checked_model, check_model, layout_of, read_vector, write_vector


def model() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(9, 4))


def test_the_layout_is_that_of_the_state_dict() -> None:
    module = model()
    layout = layout_of(module)
    state = module.state_dict()
    assert layout.names == tuple(state)
    assert layout.shapes == tuple(tuple(tensor.shape) for tensor in state.values())


def test_weights_travel_from_one_module_to_another_and_outputs_agree() -> None:
    torch.manual_seed(0)
    first, second = model(), model()
    layout = layout_of(first)
    inputs = torch.randn(5, 2, 4)
    assert not torch.equal(first(inputs), second(inputs))
    vector = read_vector(first, layout)
    write_vector(second, layout, vector)
    assert torch.equal(first(inputs), second(inputs))
    assert read_vector(second, layout).tobytes() == vector.tobytes()


def test_reading_and_writing_copy() -> None:
    module = model()
    layout = layout_of(module)
    vector = read_vector(module, layout)
    before = vector.copy()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(vector, before)
    write_vector(module, layout, vector)
    vector += 5
    np.testing.assert_array_equal(read_vector(module, layout), before)


@pytest.mark.filterwarnings("error")
def test_a_read_only_vector_is_written_without_a_warning() -> None:
    module = model()
    layout = layout_of(module)
    vector = np.frombuffer(bytes(layout.size_bytes), np.float32)
    write_vector(module, layout, vector)
    assert not read_vector(module, layout).any()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.SyncBatchNorm(3), nn.LazyBatchNorm1d()])
def test_batch_norm_is_refused_by_the_name_of_its_layer(norm: nn.Module) -> None:
    block = nn.Sequential(nn.Linear(2, 3), norm)
    whole = nn.ModuleDict({"head": nn.Linear(2, 2), "block": block})
    with pytest.raises(TaskError, match=r"'block\.1' is BatchNorm.*GroupNorm.*1 such layer\)"):
        check_model(whole)


def test_several_such_layers_are_counted() -> None:
    with pytest.raises(TaskError, match=r"'0' is BatchNorm.*2 such layers"):
        check_model(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm2d(3)))


def test_a_model_without_it_passes() -> None:
    module = model()
    assert check_model(module) is module


def test_a_tensor_that_is_not_float32_is_named() -> None:
    with pytest.raises(TaskError, match=r"num_batches_tracked is torch\.int64.*float32"):
        layout_of(nn.BatchNorm1d(3))
    with pytest.raises(TaskError, match=r"weight is torch\.float64"):
        layout_of(nn.Linear(2, 2).double())


class Unbuildable(Digits):
    """A task whose own code fails."""

    def build_model(self) -> nn.Module:
        raise ValueError("no such layer")


def test_a_model_that_cannot_be_built_is_the_tasks_error() -> None:
    assert isinstance(build_checked_model(Digits()), nn.Module)
    with pytest.raises(TaskError, match="task digits cannot be built: ValueError: no such layer"):
        build_checked_model(Unbuildable())
