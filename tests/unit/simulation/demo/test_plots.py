"""The three pictures can be opened and show something."""

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from simulation.demo.load import LoadSnapshot
from simulation.demo.plots import draw
from tests.unit.simulation.demo.figures import LOAD, ROUNDS

NAMES = ("accuracy.png", "epsilon.png", "latency.png")
BASELINES = {"accuracy_cloud_only": 0.8125, "accuracy_fedavg_only": 0.75}


def read_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return type and data of every chunk of a PNG; each one's CRC is checked."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        body = content[at + 4 : at + 8 + length]
        (crc,) = struct.unpack_from(">I", content, at + 8 + length)
        assert zlib.crc32(body) == crc
        chunks.append((body[:4], body[4:]))
        at += 12 + length
    return chunks


def check_pictures(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == list(NAMES)
    for name in NAMES:
        chunks = read_chunks((folder / name).read_bytes())
        assert chunks[-1] == (b"IEND", b"")
        width, height = struct.unpack_from(">II", dict(chunks)[b"IHDR"])
        assert (width, height) == (840, 480)
        pixels: Any = image.imread(folder / name)
        assert pixels.shape[:2] == (height, width)
        assert pixels[..., :3].std() > 0.01


def test_three_valid_pictures_are_written(tmp_path: Path) -> None:
    draw(tmp_path, ROUNDS, BASELINES, LOAD)
    check_pictures(tmp_path)


@pytest.mark.parametrize("epsilon", [{}, {"17": 1.0}], ids=["without DP", "one device"])
def test_one_round_and_three_predictions_are_enough(
    tmp_path: Path, epsilon: dict[str, float]
) -> None:
    rounds = [ROUNDS[0], {**ROUNDS[1], "epsilon": epsilon, "accuracy_test_aggregate": None}]
    draw(tmp_path, rounds, BASELINES, LoadSnapshot((1.5, 2.5, 4.0), {}))
    check_pictures(tmp_path)
