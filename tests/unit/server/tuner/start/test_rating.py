"""Which of several candidates is worth its price."""

import numpy as np

from server.tuner.settings import StartConfig
from server.tuner.start.price import Price
from server.tuner.start.rating import Rated, Tried, choose, rate, table


def sized(width: int, loss: float, latency_s: float, size_bytes: int) -> Tried:
    noise = np.linspace(-0.01, 0.01, 100)
    return Tried(
        {"width": width}, (tuple((loss + noise * width).tolist()),), Price(latency_s, size_bytes)
    )


def test_twice_the_latency_or_bytes_must_be_paid_for_by_the_loss() -> None:
    models = [
        sized(1, 1.0, 1e-6, 1000),
        sized(2, 1.0, 2e-6, 1000),
        sized(3, 1.0, 1e-6, 4000),
        Tried({"width": 4}),
        sized(5, 0.9, 2e-6, 2000),
    ]
    rated = rate(models, StartConfig(latency_price=0.05, size_price=0.02))
    scores = [each.score for each in rated]
    np.testing.assert_allclose(scores, [0, -0.05, -0.04, -np.log(0.9) - 0.07], atol=1e-12)
    assert choose(rated).values == {"width": 5}
    assert choose(rated[:3]) is rated[0]
    lines = table(rated)
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["5", "0.9000", "2.0", "2,000", "+0.035", "0.002"]


def test_a_gain_within_the_noise_changes_nothing() -> None:
    price = Price(1e-6, 1000)
    configured = Rated({"width": 1}, 1.0, price, 0.0, 0.0)
    assert choose([configured, Rated({"width": 2}, 0.9, price, 0.1, 0.06)]) is configured
    better = Rated({"width": 2}, 0.9, price, 0.1, 0.04)
    assert choose([configured, better]) is better
    unclear = Rated({"width": 3}, 0.8, price, 0.2, 0.2)
    assert choose([configured, unclear, better]) is better
