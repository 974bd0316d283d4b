"""How a vector's parameters map to byte positions of a TFLite template.

A plan is made once, where the model is converted, and ships with the template. It is small JSON:
strided copies, the layout, and hashes. Everything is checked when it is read, so that patching
can neither write outside the file nor leave a weight behind.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedge.errors import ModelError, TaskError
from fedge.params import BYTES_PER_PARAMETER, Layout
from fedge.tflite.copies import Copy

FORMAT = 1
MAX_TEMPLATE_BYTES = 2**31 - 1  # a flatbuffer cannot be larger


@dataclass(frozen=True)
class Plan:
    """A template's layout, its strided copies and its hashes.

    Attributes:
        layout: the vector's tensors.
        copies: in file order.
        ties: (alias, source): tensors that share memory; the source alone is copied.
        unused: tensors that the graph does not read.
        template_size_bytes: length of the template.
        skeleton: SHA-256 (hex) of the template with every weight byte zeroed.
        shipped_weights: SHA-256 (hex) of the vector that the template holds as shipped.
    """

    layout: Layout
    copies: tuple[Copy, ...]
    ties: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]
    template_size_bytes: int
    skeleton: str
    shipped_weights: str

    def __post_init__(self) -> None:
        """Refuse a plan that would write out of bounds, twice, or not everything."""
        if not 0 < self.template_size_bytes <= MAX_TEMPLATE_BYTES:
            raise ModelError(f"plan: a template of {self.template_size_bytes} bytes")
        sizes = dict(zip(self.layout.names, self.layout.sizes, strict=True))
        num_words = self.template_size_bytes // BYTES_PER_PARAMETER
        for copy in self.copies:
            if copy.parameter not in sizes:
                raise ModelError(f"plan: no parameter is called {copy.parameter}")
            copy.check(sizes[copy.parameter], num_words)
        self._check_overlap(num_words)
        self._check_sources(sizes)

    def _check_sources(self, sizes: dict[str, int]) -> None:
        """Refuse a plan that leaves a scalar behind without saying so."""
        exempt = {alias for alias, _ in self.ties} | set(self.unused)
        copied = {copy.parameter for copy in self.copies}
        for name in sorted(exempt):
            if name not in sizes or name in copied:
                raise ModelError(f"plan: {name} is declared tied or unused, wrongly")
        for alias, source in self.ties:
            if source in exempt or sizes.get(source) != sizes[alias]:
                raise ModelError(f"plan: {alias} cannot be tied to {source}")
        for name in sizes.keys() - exempt:
            self._check_covered(name, sizes[name])

    def _check_covered(self, name: str, size: int) -> None:
        copies = [copy for copy in self.copies if copy.parameter == name]
        if sum(copy.num_scalars for copy in copies) < size:
            raise ModelError(f"plan: parameter {name} is not copied whole")
        covered = np.zeros(size, np.bool_)
        for copy in copies:
            copy.source_view(covered)[...] = True
        if not covered.all():
            raise ModelError(f"plan: parameter {name} is not copied whole")

    def _check_overlap(self, num_words: int) -> None:
        if sum(copy.num_scalars for copy in self.copies) > num_words:
            raise ModelError("plan: two copies write the same place of the file")
        written = np.zeros(num_words, np.bool_)
        for copy in self.copies:
            copy.file_view(written)[...] = True
        if int(written.sum()) != sum(copy.num_scalars for copy in self.copies):
            raise ModelError("plan: two copies write the same place of the file")

    def to_json(self) -> str:
        """Return canonical JSON with a hash of itself, read back by `from_json`."""
        body = {
            "format": FORMAT,
            "names": self.layout.names,
            "shapes": self.layout.shapes,
            "copies": [asdict(copy) for copy in self.copies],
            "ties": self.ties,
            "unused": self.unused,
            "template_size_bytes": self.template_size_bytes,
            "skeleton": self.skeleton,
            "shipped_weights": self.shipped_weights,
        }
        return _canonical({**body, "sha256": _digest(body)})

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read what `to_json` wrote, byte for byte.

        Raises:
            ModelError: it is damaged, of another format, or does not hold together.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            digest = data.pop("sha256")
            if text != _canonical({**data, "sha256": digest}) or digest != _digest(data):
                raise ModelError("plan: damaged (its content does not match its hash)")
            if data["format"] != FORMAT:
                raise ModelError(f"plan: format {data['format']!r}, this version reads {FORMAT}")
            return Plan(
                layout=Layout(tuple(data["names"]), tuple(map(tuple, data["shapes"]))),
                copies=tuple(Copy.from_tree(copy) for copy in data["copies"]),
                ties=tuple((alias, source) for alias, source in data["ties"]),
                unused=tuple(data["unused"]),
                template_size_bytes=int(data["template_size_bytes"]),
                skeleton=str(data["skeleton"]),
                shipped_weights=str(data["shipped_weights"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise ModelError(f"plan: not a patching plan: {error!r:.120}") from error
        except TaskError as error:
            raise ModelError(f"plan: {error}") from error


def _canonical(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":")) + "\n"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body).encode()).hexdigest()
