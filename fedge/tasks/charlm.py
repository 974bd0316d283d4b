"""The next character of plays: a small transformer, speakers as clients.

The text is a file of blocks ``NAME:`` and lines, divided by empty lines, that ``path`` names; it is
no part of fedge. The model needs no text: its alphabet is an option.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedge.errors import TaskError
from fedge.rng import stream
from fedge.split_plan import SplitPlan
from fedge.task import CloudData, EdgeFiles, Examples, SampleStore, Split

if TYPE_CHECKING:
    from torch import Tensor, nn

ALPHABET = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SIZES = ("width", "depth", "heads", "context")

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CharLm:
    """Next character at every place of a window; targets are the inputs one place later.

    Clients are the speakers with ``min_characters`` or more, most text first. The others, whom
    nobody trains on, are the cloud: a third of them the proxy share, a third the gate, a third
    the test share.

    Attributes:
        path: the text; empty makes a task that has a model and no data.
        seed: draws which speaker of the cloud belongs to which share.
        alphabet: all characters that may occur; a code is a place in it.
        width, depth, heads, context: the transformer's sizes, context in characters.
        num_proxy, num_gate, num_test: windows of the cloud's shares; 0 takes all there are.
        max_examples: the first so many windows of each client; 0 takes all.
    """

    path: str = ""
    seed: int = 0
    alphabet: str = ALPHABET
    width: int = 64
    depth: int = 4
    heads: int = 4
    context: int = 64
    min_characters: int = 2000
    num_proxy: int = 0
    num_gate: int = 0
    num_test: int = 0
    max_examples: int = 0

    name = "charlm"

    def __post_init__(self) -> None:
        """Refuse sizes that make no model."""
        for key in _SIZES:
            if getattr(self, key) < 1:
                raise TaskError(f"charlm: {key} must be >= 1, got {getattr(self, key)}")
        if self.width % self.heads:
            raise TaskError(f"charlm: {self.heads} heads do not divide a width of {self.width}")
        if len(set(self.alphabet)) != len(self.alphabet) or not self.alphabet:
            raise TaskError("charlm: the alphabet is empty or has a character twice")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One window of character codes."""
        return (self.context,)

    @property
    def num_clients(self) -> int:
        """Speakers that are clients."""
        return len(self._names[0])

    def build_model(self) -> nn.Module:
        """Return the transformer; inputs ``[B, T]`` codes, logits ``[B, T, V]``."""
        from fedge.tasks.charlm_model import CharTransformer

        return CharTransformer(
            vocabulary_size=len(self.alphabet),
            context=self.context,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
        )

    def split_plan(self) -> SplitPlan:
        """Return the cuts: stages between blocks; heads and MLP units among processes."""
        blocks = tuple(f"blocks.{index}" for index in range(self.depth))
        attention = ("query", "key", "value")
        return SplitPlan(
            chain=("embed", *blocks, "head"),
            blocks="blocks.*",
            column=(*(f"blocks.*.attention.{name}" for name in attention), "blocks.*.mlp.up"),
            row=("blocks.*.attention.out", "blocks.*.mlp.down"),
            tensor_units=self.heads,
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each window's mean cross-entropy, ``[B]``."""
        from torch.nn import functional

        losses = functional.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), reduction="none"
        )
        return losses.view(targets.shape).mean(dim=1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the share of characters that were guessed."""
        return {"accuracy": (outputs.argmax(dim=-1) == targets).double().mean().item()}

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Return one speaker's windows; fewer clients than speakers are the first of them.

        Raises:
            TaskError: there is no such client, or the text cannot be used.
        """
        names = self._names[0]
        if not 0 <= client < num_clients <= len(names):
            raise TaskError(f"charlm: client {client} of {num_clients} is not one of {len(names)}")
        examples = _windows(self._texts[names[client]], self.context)
        return examples.subset(np.arange(len(examples))[: self.max_examples or None])

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        """Return the device's own windows with the characters that followed.

        Raises:
            TaskError: the stored samples are no windows of this context and alphabet.
        """
        stored = store.labelled(split)
        if len(stored) == 0:
            return _windows(np.zeros(0, np.int64), self.context)
        inputs, targets = np.asarray(stored.inputs), np.asarray(stored.targets)
        for values in (inputs, targets):
            if values.shape[1:] != self.input_shape or not self._are_codes(values):
                raise TaskError(
                    f"charlm: stored samples must be {self.context} codes below "
                    f"{len(self.alphabet)} with as many targets"
                )
        return Examples(inputs.astype(np.int64), targets.astype(np.int64))

    def cloud_data(self) -> CloudData:
        """Return proxy, gate and test windows, each of speakers of its own."""
        proxy, gate, test = (
            share.tolist() for share in np.array_split(np.array(self._names[1]), 3)
        )
        return CloudData(
            proxy=self._draw("proxy", proxy, self.num_proxy),
            gate=self._draw("gate", gate, self.num_gate),
            test=self._draw("test", test, self.num_test),
        )

    def edge_files(self) -> EdgeFiles | None:
        """Return None: where a device is to serve this model, the server converts it."""
        return None

    @property
    def _texts(self) -> dict[str, Codes]:
        if not self.path:
            raise TaskError("charlm: task.options.path must name a text of NAME: blocks")
        return _read(self.path, self.alphabet)

    @cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        """Clients, most text first, and the speakers of the cloud in random order."""
        texts = self._texts
        ordered = sorted(texts, key=lambda name: (-len(texts[name]), name))
        clients = [name for name in ordered if len(texts[name]) >= self.min_characters]
        others = np.array(ordered[len(clients) :], dtype=np.str_)
        return clients, stream(self.seed, "charlm-cloud").permutation(others).tolist()

    def _draw(self, share: str, names: list[str], num_examples: int) -> Examples:
        parts = [_windows(self._texts[name], self.context) for name in names]
        parts.append(_windows(np.zeros(0, np.int64), self.context))
        inputs = np.concatenate([part.inputs for part in parts])
        targets = np.concatenate([part.targets for part in parts])
        if num_examples > len(inputs):
            raise TaskError(
                f"charlm: num_{share} is {num_examples}, its {len(names)} speakers give "
                f"{len(inputs)} windows of {self.context}"
            )
        rng = stream(self.seed, f"charlm-{share}")
        return Examples(inputs, targets).subset(
            rng.permutation(len(inputs))[: num_examples or None]
        )

    def _are_codes(self, values: npt.NDArray[np.generic]) -> bool:
        return bool(np.isin(values, np.arange(len(self.alphabet))).all())


@cache
def _read(path: str, alphabet: str) -> dict[str, Codes]:
    """Return all that each speaker says, as codes."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"charlm: cannot read {path}: {error}") from error
    said: dict[str, list[str]] = {}
    for block in text.split("\n\n"):
        name, colon, lines = block.strip("\n").partition(":\n")
        if colon and lines:
            said.setdefault(name, []).append(f"{lines}\n")
    if not said:
        raise TaskError(f"charlm: {path} has no block that begins with NAME: on a line of its own")
    code_of = {character: code for code, character in enumerate(alphabet)}
    found = set("".join(lines for blocks in said.values() for lines in blocks))
    strange = sorted(found - code_of.keys())
    if strange:
        raise TaskError(f"charlm: {path} has {strange[0]!r}, which is not in the alphabet")
    return {
        name: np.array([code_of[character] for character in "".join(blocks)], np.int64)
        for name, blocks in said.items()
    }


def _windows(codes: Codes, context: int) -> Examples:
    """Return windows side by side, ``[N, T]``, and what follows each of their characters."""
    count = max(0, (len(codes) - 1) // context)
    inputs = codes[: count * context].reshape(count, context)
    targets = codes[1 : count * context + 1] if count else codes[:0]
    return Examples(inputs, targets.reshape(count, context))
