"""Shakespeare's speakers: who says what, and a model that devices can take."""

import numpy as np
import pytest
import torch

from benchmarks.harness import CannotRun
from benchmarks.tasks import speakers
from benchmarks.tasks.speakers import CONTEXT, PATH, VOCABULARY_SIZE, OneHot, Speakers
from fedge.errors import TaskError
from fedge.task import Examples, Task

needs_text = pytest.mark.skipif(not PATH.is_file(), reason=f"{PATH} is not there")


def as_text(examples: Examples, alphabet: str) -> str:
    first = "".join(alphabet[int(code)] for code in examples.inputs[0])
    return first + "".join(alphabet[code] for code in examples.targets)


@needs_text
def test_a_client_is_a_speaker_and_its_examples_are_what_that_one_says() -> None:
    task = Speakers()
    assert isinstance(task, Task)
    assert task.num_clients == 99
    text = PATH.read_text()
    alphabet = "".join(sorted(set(text)))
    assert len(alphabet) == VOCABULARY_SIZE
    said = as_text(task.client_data(98, 99), alphabet)
    assert len(said) >= 2000
    longest = max(said.split("\n"), key=len)
    assert longest in text
    sizes = [len(task.client_data(client, 99)) for client in range(99)]
    assert sizes == sorted(sizes, reverse=True)
    few = task.client_data(2, 3)
    np.testing.assert_array_equal(few.inputs, task.client_data(2, 99).inputs)
    assert len(Speakers(max_examples=100).client_data(2, 3)) == 100
    assert few.inputs.shape[1:] == task.input_shape == (CONTEXT,)


@needs_text
def test_the_seed_draws_the_shares_of_the_cloud() -> None:
    cloud = Speakers(num_proxy=50, num_test=500).cloud_data()
    assert (len(cloud.proxy), len(cloud.gate), len(cloud.test)) == (50, 600, 500)
    again = Speakers(num_proxy=50, num_test=500).cloud_data()
    np.testing.assert_array_equal(cloud.test.inputs, again.test.inputs)
    other = Speakers(seed=1, num_proxy=50, num_test=500).cloud_data()
    assert (cloud.test.inputs != other.test.inputs).any()
    with pytest.raises(TaskError, match="num_test is 900000"):
        Speakers(num_test=900_000).cloud_data()


@needs_text
def test_there_are_no_more_clients_than_speakers() -> None:
    for client, num_clients in ((0, 100), (8, 8), (-1, 8)):
        with pytest.raises(TaskError, match=f"client {client} of {num_clients}"):
            Speakers().client_data(client, num_clients)


def test_codes_become_one_hot_rows_under_vmap_too() -> None:
    codes = torch.tensor([[[0.0, 64.0], [3.0, 7.0]]])
    expected = torch.nn.functional.one_hot(codes.long(), VOCABULARY_SIZE).float()
    torch.testing.assert_close(OneHot()(codes), expected)
    torch.testing.assert_close(torch.func.vmap(OneHot())(codes), expected)
    between = OneHot()(torch.tensor([[0.25]]))[0, 0]
    torch.testing.assert_close(between[:3], torch.tensor([0.75, 0.25, 0.0]))


@needs_text
def test_each_example_has_a_gradient_of_its_own() -> None:
    task = Speakers()
    model = task.build_model()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    assert sum(value.numel() for value in parameters.values()) == 42_321

    def loss(values: dict[str, torch.Tensor], codes: torch.Tensor, target: torch.Tensor) -> object:
        outputs = torch.func.functional_call(model, values, (codes.unsqueeze(0),))
        return task.loss(outputs, target.unsqueeze(0)).sum()

    examples = task.client_data(0, 1).subset(np.arange(3))
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
        parameters, torch.tensor(examples.inputs), torch.tensor(examples.targets)
    )
    assert all(value.shape[0] == 3 for value in gradients.values())
    assert gradients["1.weight"].abs().sum() > 0


def test_without_the_text_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speakers, "PATH", PATH.with_name("nowhere.txt"))
    with pytest.raises(CannotRun, match=r"nowhere\.txt is not there"):
        Speakers()
