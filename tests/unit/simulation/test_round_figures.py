import subprocess
import sys

from simulation.round_figures import RoundFigures, peak_rss_bytes, tree_rss_bytes

MIB = 1 << 20


def test_the_parts_of_a_round_are_added_up() -> None:
    figures = RoundFigures()
    figures.note_training(
        num_clients=3, seconds=1.0, outcomes={"ok": 3, "late": 0}, bytes_down=10, bytes_up=5
    )
    figures.note_training(
        num_clients=1, seconds=1.0, outcomes={"ok": 1, "crash": 2}, bytes_down=4, bytes_up=2
    )
    found = figures.take(virtual_s=7.5)
    assert found["virtual_s"] == 7.5
    assert (found["bytes_down"], found["bytes_up"]) == (14, 7)
    assert found["outcomes"] == {"ok": 4, "crash": 2}
    assert found["clients_per_s"] == 2.0


def test_each_round_begins_anew() -> None:
    figures = RoundFigures()
    figures.note_training(num_clients=3, seconds=1.0, outcomes={"ok": 3}, bytes_down=10, bytes_up=5)
    figures.take(1.0)
    found = figures.take(2.0)
    assert (found["bytes_down"], found["bytes_up"], found["outcomes"]) == (0, 0, {})
    assert found["clients_per_s"] is None


def test_memory_is_in_bytes_and_counts_worker_processes() -> None:
    alone = tree_rss_bytes()
    assert alone is not None
    assert 10 * MIB < alone < 100_000 * MIB
    assert peak_rss_bytes() > 10 * MIB
    script = f"ballast = b'x' * {200 * MIB}; print('ready', flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        together = tree_rss_bytes()
        child.communicate(b"\n")
    assert together is not None
    assert together - alone > 150 * MIB
