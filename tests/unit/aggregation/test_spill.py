from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aggregation.spill import SpilledUpdates
from fedge.errors import AggregationError, UpdateRejected
from fedge.params import Layout
from tests.unit.aggregation.helpers import client_update

LAYOUT = Layout(("weight",), ((6,),))
NODE_IDS = [2**63 + 5, 12, 7]


@pytest.fixture
def spilled(tmp_path: Path) -> Iterator[SpilledUpdates]:
    updates = SpilledUpdates(LAYOUT, tmp_path / "spill")
    yield updates
    updates.close()


def fill(spilled: SpilledUpdates) -> None:
    for client in NODE_IDS:
        delta = np.arange(6, dtype=np.float32) + client % 1000
        spilled.append(client_update(client, delta, float(client % 1000), discount=0.5))


def test_rows_and_weights_come_back_in_client_order(spilled: SpilledUpdates) -> None:
    fill(spilled)
    assert len(spilled) == 3
    assert spilled.weights.tolist() == [3.5, 6.0, (2**63 + 5) % 1000 / 2]
    assert spilled.discounts.tolist() == [0.5] * 3
    expected = np.linalg.norm(spilled.columns(0, 6), axis=1)
    np.testing.assert_allclose(spilled.norms, expected, rtol=1e-6)
    np.testing.assert_array_equal(spilled.columns(1, 3)[:2], [[8, 9], [13, 14]])


def test_columns_are_copies_that_outlive_the_file(spilled: SpilledUpdates) -> None:
    fill(spilled)
    before = spilled.columns(0, 6)
    before[...] = -1
    assert spilled.columns(0, 6).min() >= 0
    spilled.close()
    assert before.max() == -1


def test_an_update_may_be_appended_after_reading(spilled: SpilledUpdates) -> None:
    fill(spilled)
    spilled.columns(0, 6)
    spilled.append(client_update(1, np.full(6, 99, np.float32), 1.0))
    assert spilled.columns(5, 6).shape == (4, 1)
    assert spilled.columns(5, 6)[0, 0] == 99


def test_only_the_chosen_rows_are_read_if_any_are_chosen(spilled: SpilledUpdates) -> None:
    fill(spilled)
    whole = spilled.columns(0, 6)
    np.testing.assert_array_equal(spilled.columns(1, 4, np.array([2, 0])), whole[[2, 0], 1:4])
    assert spilled.columns(1, 4, np.array([], np.intp)).shape == (0, 3)


def test_several_threads_read_at_once(spilled: SpilledUpdates) -> None:
    fill(spilled)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: spilled.columns(start, start + 1), range(6)))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), spilled.columns(0, 6))


def test_no_update_is_no_row(spilled: SpilledUpdates) -> None:
    assert spilled.columns(2, 5).shape == (0, 3)
    assert spilled.weights.shape == (0,)


def test_nothing_of_a_client_has_a_name_on_disk(spilled: SpilledUpdates, tmp_path: Path) -> None:
    fill(spilled)
    assert list((tmp_path / "spill").iterdir()) == []


def test_a_wrong_layout_is_refused_before_it_is_written(spilled: SpilledUpdates) -> None:
    with pytest.raises(UpdateRejected):
        spilled.append(client_update(1, np.zeros(5, np.float32), 1.0))
    assert len(spilled) == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AggregationError, match=r"file.*streaming aggregator"):
        SpilledUpdates(LAYOUT, tmp_path / "file" / "spill")


def test_a_full_disk_is_named_and_the_update_is_not_counted(
    spilled: SpilledUpdates, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(spilled)

    class FullDisk:
        def seek(self, offset: int) -> int:
            return offset

        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    whole = spilled._file
    monkeypatch.setattr(spilled, "_file", FullDisk())
    with pytest.raises(AggregationError, match="No space left"):
        spilled.append(client_update(1, np.zeros(6, np.float32), 1.0))
    monkeypatch.setattr(spilled, "_file", whole)
    assert spilled.columns(0, 6).shape == (3, 6)


def test_closing_twice_is_fine(spilled: SpilledUpdates) -> None:
    fill(spilled)
    spilled.columns(0, 1)
    spilled.close()
    spilled.close()
    assert spilled._file.closed
