from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedge.config import build
from fedge.errors import RefineError
from fedge.params import Vector
from fedge.settings import Hyperparameters
from fedge.training.local import LocalTrainer
from server.reference import Reference, make_reference
from server.settings import ServerConfig
from server.trainer.spec import Refinement
from tests.unit.server.fake_grid import FakeGrid, TinyTask, honest
from tests.unit.server.scripted_rounds import configure, run, start_weights


class Shifter:
    """A refiner that adds one to every weight, or fails in even rounds."""

    def __init__(self) -> None:
        self.closed = False

    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        if round % 2 == 0:
            raise RefineError("no trainer")
        return Refinement(weights + 1, 1, 0.0, 1.0, 1.0)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("in_background", [False, True])
def test_the_reference_is_the_refinement_less_its_parent(in_background: bool) -> None:
    refiner = Shifter()
    reference = Reference(refiner, in_background=in_background, deadline_s=5.0)
    assert reference.take() is None
    parent = np.arange(3, dtype=np.float32)
    reference.start(1, parent)
    taken = reference.take()
    assert taken is not None
    assert taken.tolist() == [1.0, 1.0, 1.0]
    reference.start(2, parent)
    assert reference.take() is None
    reference.close()
    assert refiner.closed


def test_only_fltrust_has_a_reference(tmp_path: Path) -> None:
    assert make_reference(configure(tmp_path), TinyTask()) is None
    trust = configure(tmp_path, aggregation={"aggregator": "fltrust"})
    made = make_reference(trust, TinyTask())
    assert made is not None
    made.close()


def test_the_reference_trains_as_a_client_with_the_proxy_data_would(tmp_path: Path) -> None:
    train = {"learning_rate": 0.05, "local_epochs": 3, "batch_size": 64}
    config = configure(tmp_path, aggregation={"aggregator": "fltrust"}, train=train)
    reference = make_reference(config, TinyTask())
    assert reference is not None
    reference.start(1, start_weights())
    taken = reference.take()
    # All proxy examples are one batch, so the order in which they are drawn does not matter.
    from fedge.privacy.noise import Draws

    trainer = LocalTrainer(TinyTask())
    result = trainer.train(
        start_weights(),
        TinyTask().cloud_data().proxy,
        build(Hyperparameters, train),
        draws=Draws.seeded(0),
    )
    assert taken is not None
    np.testing.assert_allclose(taken, result.delta, rtol=1e-4, atol=1e-7)


def test_a_round_of_fltrust_is_scaled_to_the_reference(tmp_path: Path) -> None:
    config = configure(tmp_path, aggregation={"aggregator": "fltrust"})
    reference = make_reference(config, TinyTask())
    assert reference is not None
    reference.start(1, start_weights())
    own = reference.take()
    assert own is not None
    summary = run(FakeGrid({node: honest for node in range(1, 8)}), config)
    moved = summary.weights - start_weights()
    assert summary.rounds[-1]["applied"]
    assert 0 < np.linalg.norm(moved) <= np.linalg.norm(own) * 1.001


def test_without_a_reference_the_model_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, {"num_rounds": 2}, aggregation={"aggregator": "fltrust"})
    broken = Reference(Shifter(), in_background=False, deadline_s=1.0)
    monkeypatch.setattr(broken, "take", lambda: None)
    monkeypatch.setattr("server.federation.make_reference", lambda *_: broken)
    summary = run(FakeGrid({1: honest, 2: honest}), config)
    assert [line["applied"] for line in summary.rounds] == [False, False, False]
    assert summary.weights.tobytes() == start_weights().tobytes()


def test_half_of_scaffold_is_refused() -> None:
    from fedge.errors import ConfigError

    with pytest.raises(ConfigError, match="scaffold needs both"):
        build(ServerConfig, {"aggregation": {"aggregator": "scaffold"}})
    with pytest.raises(ConfigError, match="scaffold needs both"):
        build(ServerConfig, {"train": {"client_term": "scaffold"}})
    both = {
        "aggregation": {"aggregator": "scaffold", "max_staleness": 1},
        "train": {"client_term": "scaffold"},
    }
    with pytest.raises(ConfigError, match="late update"):
        build(ServerConfig, both)


@pytest.mark.parametrize("method", ["fednova", "scaffold"])
def test_methods_that_count_gradient_steps_refuse_adam(method: str) -> None:
    from fedge.errors import ConfigError

    term = "scaffold" if method == "scaffold" else "none"
    sections = {
        "aggregation": {"aggregator": method},
        "train": {"client_term": term, "optimizer": "adam"},
    }
    with pytest.raises(
        ConfigError, match=r'^train\.optimizer: .* takes clients that train with "sgd"'
    ):
        build(ServerConfig, sections)
    sections["train"]["optimizer"] = "sgd"
    assert build(ServerConfig, sections).aggregation.aggregator == method
