"""Characters of plays: speakers, windows, and a transformer that sees only what came before."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedge.errors import TaskError
from fedge.task import Examples, Task, load_task
from fedge.tasks.charlm import ALPHABET, CharLm
from fedge.weights import build_checked_model

SHAKESPEARE = Path(__file__).resolve().parents[5] / "shared" / "data" / "shakespeare" / "input.txt"
PLAY = """ANNA:
abcabcabcabcabc
cab

BERT:
cccbbbaaa

ANNA:
bb

CARL:
abc

DORA:
cba abc

EMIL:
aa bb cc
"""


@pytest.fixture
def play(tmp_path: Path) -> CharLm:
    path = tmp_path / "play.txt"
    path.write_text(PLAY)
    return CharLm(path=str(path), alphabet="abc \n", context=3, min_characters=10, width=8, heads=2)


def as_text(task: CharLm, examples: Examples) -> str:
    return "".join(task.alphabet[code] for code in examples.inputs.ravel())


def test_a_client_is_a_speaker_with_all_that_one_says(play: CharLm) -> None:
    assert isinstance(play, Task)
    assert play.num_clients == 2
    anna = play.client_data(0, 2)
    assert as_text(play, anna) == "abcabcabcabcabc\ncab\nb"
    np.testing.assert_array_equal(anna.inputs[:, 1:], anna.targets[:, :-1])
    np.testing.assert_array_equal(anna.inputs[1:, 0], anna.targets[:-1, -1])
    assert as_text(play, play.client_data(1, 2)) == "cccbbbaaa"
    assert anna.inputs.shape[1:] == play.input_shape
    limited = replace(play, max_examples=2)
    assert len(limited.client_data(0, 1)) == 2
    with pytest.raises(TaskError, match="client 2 of 3"):
        play.client_data(2, 3)


def test_the_cloud_has_the_minor_parts_each_in_one_share(play: CharLm) -> None:
    def texts(task: CharLm) -> list[str]:
        cloud = task.cloud_data()
        return [as_text(task, share) for share in (cloud.proxy, cloud.gate, cloud.test)]

    drawn = texts(play)
    windows = {frozenset(text[i : i + 3] for i in range(0, len(text), 3)) for text in drawn}
    assert windows == {frozenset({"abc"}), frozenset({"cba", " ab"}), frozenset({"aa ", "bb "})}
    assert texts(replace(play)) == drawn
    with pytest.raises(TaskError, match="num_gate is 50"):
        replace(play, num_gate=50).cloud_data()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 10, "heads": 4}, "4 heads do not divide a width of 10"),
        ({"depth": 0}, "depth must be >= 1"),
        ({"alphabet": "aa"}, "has a character twice"),
    ],
)
def test_sizes_that_make_no_model_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(TaskError, match=text):
        load_task("fedge.tasks.charlm:CharLm", **options)


def test_a_text_that_cannot_be_used_is_refused_when_it_is_read(tmp_path: Path) -> None:
    prose, strange = tmp_path / "prose.txt", tmp_path / "strange.txt"
    prose.write_text("no speaker here")
    strange.write_text("ANNA:\nübel")
    for path, text in (
        ("", "path must name a text"),
        (str(tmp_path / "nowhere.txt"), "cannot read"),
        (str(prose), "no block"),
        (str(strange), "'ü', which is not in the alphabet"),
    ):
        with pytest.raises(TaskError, match=text):
            CharLm(path=path).cloud_data()


def test_no_place_sees_what_comes_after_it() -> None:
    task = CharLm(width=16, depth=2, heads=4, context=8)
    model = build_checked_model(task)
    torch.manual_seed(0)
    codes = torch.randint(0, len(ALPHABET), (2, 8))
    before = model(codes)
    codes[:, 5] = (codes[:, 5] + 1) % len(ALPHABET)
    after = model(codes)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=0)
    assert (after[:, 5:] != before[:, 5:]).any(dim=-1).all()


def test_attention_is_what_torch_computes() -> None:
    from fedge.tasks.charlm_model import Attention

    torch.manual_seed(0)
    ours = Attention(12, 3, 1)
    theirs = torch.nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(
            torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
        )
        theirs.out_proj.weight.copy_(ours.out.weight)
    x = torch.randn(2, 7, 12)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7)
    expected, _ = theirs(x, x, x, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(ours(x), expected)


def test_a_loss_is_the_mean_over_one_window_and_goes_through_vmap() -> None:
    task = CharLm(width=8, depth=1, heads=2, context=4)
    model = task.build_model()
    torch.manual_seed(0)
    codes = torch.randint(0, 65, (3, 5))
    outputs, targets = model(codes[:, :4]), codes[:, 1:]
    logs = outputs.log_softmax(dim=-1)
    expected = -torch.stack([logs[b, torch.arange(4), targets[b]].mean() for b in range(3)])
    torch.testing.assert_close(task.loss(outputs, targets), expected)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found = torch.func.functional_call(model, values, (x.unsqueeze(0),))
        return task.loss(found, y.unsqueeze(0)).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
        parameters, codes[:, :4], targets
    )
    assert all(value.shape[0] == 3 for value in gradients.values())
    assert 0 <= task.metrics(outputs, targets)["accuracy"] <= 1


def test_a_device_trains_on_windows_of_codes_alone() -> None:
    class Store:
        def __init__(self, inputs: object, targets: object) -> None:
            self.examples = Examples(np.asarray(inputs), np.asarray(targets))

        def labelled(self, split: str) -> Examples:
            return self.examples

    task = CharLm(context=2, alphabet="abc")
    good = task.device_data(Store([[0.0, 2.0]], [[2, 1]]), "train")
    assert good.inputs.dtype == good.targets.dtype == np.int64
    assert len(task.device_data(Store(np.zeros((0,)), np.zeros((0,))), "train")) == 0
    for inputs, targets in (([[0, 3]], [[1, 1]]), ([[0, 0.5]], [[1, 1]]), ([[0]], [[1, 1]])):
        with pytest.raises(TaskError, match="2 codes below 3"):
            task.device_data(Store(inputs, targets), "train")


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason=f"{SHAKESPEARE} is not there")
def test_shakespeare_is_a_text_of_99_clients() -> None:
    task = CharLm(path=str(SHAKESPEARE))
    assert task.num_clients == 99
    assert set(SHAKESPEARE.read_text()) == set(ALPHABET)
    cloud = task.cloud_data()
    assert min(len(cloud.proxy), len(cloud.gate), len(cloud.test)) > 300
