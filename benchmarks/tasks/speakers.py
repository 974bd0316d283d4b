"""Next character of Shakespeare's speakers: natural clients, and a cloud of minor parts.

The text lies beside the project in ``../shared/data/shakespeare`` and is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from benchmarks.harness import CannotRun
from benchmarks.tasks.classification import Classification
from fedge.errors import TaskError
from fedge.rng import stream
from fedge.task import CloudData, Examples

PATH = Path(__file__).resolve().parents[3] / "shared" / "data" / "shakespeare" / "input.txt"
VOCABULARY_SIZE = 65
CONTEXT = 16
MIN_CHARACTERS = 2000
_EMBEDDING_SIZE, _HIDDEN_SIZE = 16, 128

Codes = npt.NDArray[np.float32]


class OneHot(nn.Module):
    """Turns character codes into one-hot rows.

    Between two codes it interpolates: a device's self-test asks with fractions. Made of plain
    arithmetic, it goes through vmap and the TFLite converter.
    """

    def forward(self, codes: Tensor) -> Tensor:
        """Return ``[B, T, 65]`` for codes ``[B, T]``."""
        names = torch.arange(VOCABULARY_SIZE, dtype=codes.dtype, device=codes.device)
        return torch.relu(1.0 - (codes.unsqueeze(-1) - names).abs())


@dataclass(frozen=True)
class Speakers(Classification):
    """Next character after 16 others, a speaker a client.

    Clients are the speakers with at least 2,000 characters, those with the most text first.
    The others, whom nobody trains on, are the cloud: a third of them are the proxy share, a third
    the gate, a third the test share.

    Attributes:
        seed: draws which speaker of the cloud belongs to which share.
        num_proxy, num_gate, num_test: examples of the cloud's shares.
        max_examples: the first so many examples of each client; 0 takes all.

    Raises:
        CannotRun: the text is not there.
    """

    seed: int = 0
    num_proxy: int = 600
    num_gate: int = 600
    num_test: int = 10_000
    max_examples: int = 0

    name = "speakers"
    input_shape = (CONTEXT,)

    def __post_init__(self) -> None:
        """Refuse to begin without the text."""
        if not PATH.is_file():
            raise CannotRun(f"{PATH} is not there: the plays lie beside the project")

    @property
    def num_clients(self) -> int:
        """Speakers that are clients."""
        return len(self._names[0])

    def build_model(self) -> nn.Module:
        """Return an MLP of 42k parameters; inputs ``[B, 16]`` codes as floats, 65 logits."""
        return nn.Sequential(
            OneHot(),
            nn.Linear(VOCABULARY_SIZE, _EMBEDDING_SIZE, bias=False),
            nn.Flatten(),
            nn.Linear(CONTEXT * _EMBEDDING_SIZE, _HIDDEN_SIZE),
            nn.ReLU(),
            nn.Linear(_HIDDEN_SIZE, VOCABULARY_SIZE),
        )

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Return one speaker's text; fewer clients than speakers are the first of them.

        Raises:
            TaskError: there is no such client.
        """
        names = self._names[0]
        if not 0 <= client < num_clients <= len(names):
            raise TaskError(
                f"speakers: client {client} of {num_clients} is not one of {len(names)}"
            )
        examples = _windows(_texts()[names[client]])
        return examples.subset(np.arange(len(examples))[: self.max_examples or None])

    def cloud_data(self) -> CloudData:
        """Return proxy, gate and test text, each of speakers of its own."""
        shares = np.array_split(np.array(self._names[1]), 3)
        sizes = {"proxy": self.num_proxy, "gate": self.num_gate, "test": self.num_test}
        drawn = {
            key: self._draw(key, names.tolist(), size)
            for (key, size), names in zip(sizes.items(), shares, strict=True)
        }
        return CloudData(drawn["proxy"], drawn["gate"], drawn["test"])

    @cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        """Clients, most text first, and the speakers of the cloud in random order."""
        texts = _texts()
        ordered = sorted(texts, key=lambda name: (-len(texts[name]), name))
        clients = [name for name in ordered if len(texts[name]) >= MIN_CHARACTERS]
        others = np.array(ordered[len(clients) :])
        return clients, stream(self.seed, "speakers-cloud").permutation(others).tolist()

    def _draw(self, share: str, names: list[str], num_examples: int) -> Examples:
        parts = [_windows(_texts()[name]) for name in names]
        inputs = np.concatenate([part.inputs for part in parts])
        targets = np.concatenate([part.targets for part in parts])
        if num_examples > len(targets):
            raise TaskError(
                f"speakers: num_{share} is {num_examples}, its {len(names)} speakers give "
                f"{len(targets)}"
            )
        rng = stream(self.seed, f"speakers-{share}")
        chosen = rng.choice(len(targets), num_examples, replace=False)
        return Examples(inputs, targets).subset(chosen)


@cache
def _texts() -> dict[str, Codes]:
    """Return all that each speaker says, as codes 0 to 64 in the order of the characters."""
    text = PATH.read_text(encoding="ascii")
    code_of = {character: code for code, character in enumerate(sorted(set(text)))}
    said: dict[str, list[str]] = {}
    for block in text.split("\n\n"):
        name, colon, lines = block.strip("\n").partition(":\n")
        if colon and lines:
            said.setdefault(name, []).append(f"{lines}\n")
    return {
        name: np.array([code_of[character] for character in "".join(blocks)], np.float32)
        for name, blocks in said.items()
    }


def _windows(codes: Codes) -> Examples:
    """Return each run of 16 characters, ``[N, 16]``, with the one that follows."""
    if len(codes) <= CONTEXT:
        return Examples(np.zeros((0, CONTEXT), np.float32), np.zeros(0, np.int64))
    inputs = sliding_window_view(codes[:-1], CONTEXT)
    return Examples(np.ascontiguousarray(inputs), codes[CONTEXT:].astype(np.int64))
