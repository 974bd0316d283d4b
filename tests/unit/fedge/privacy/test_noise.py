import math
from functools import partial

import pytest
import torch
from scipy import stats

from fedge.privacy.noise import Draws


def test_seeded_draws_repeat_and_are_not_private() -> None:
    first, again, other = Draws.seeded(1), Draws.seeded(1), Draws.seeded(2)
    assert not first.private
    sample = first.normal(100)
    assert torch.equal(sample, again.normal(100))
    assert not torch.equal(sample, other.normal(100))
    assert not torch.equal(sample, first.normal(100))


def test_secure_draws_are_private_and_never_repeat() -> None:
    first, again = Draws.secure(), Draws.secure()
    torch.manual_seed(0)
    before = first.normal(64)
    torch.manual_seed(0)
    assert first.private
    assert again.private
    assert len({*before.tolist(), *first.normal(64).tolist(), *again.normal(64).tolist()}) == 192


@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_normal_gives_exactly_so_many_and_float64_where_it_is_to_be_private(size: int) -> None:
    private, seeded = Draws.secure().normal(size), Draws.seeded(0).normal(size)
    assert private.shape == seeded.shape == (size,)
    assert private.dtype == torch.float64
    assert seeded.dtype == torch.float32


@pytest.mark.parametrize("draws", [Draws.seeded(3), Draws.secure()], ids=["seeded", "secure"])
def test_noise_is_standard_normal_and_its_halves_independent(draws: Draws) -> None:
    sample = draws.normal(200_000)
    # One in a million chances: secure draws cannot be fixed by a seed.
    assert stats.kstest(sample.numpy(), "norm").pvalue > 1e-6
    cosines, sines = sample[:100_000], sample[100_000:]
    for left, right in ((cosines, sines), (cosines.abs(), sines.abs())):
        correlation = torch.corrcoef(torch.stack((left, right)))[0, 1].item()
        assert abs(correlation) < 5 / math.sqrt(100_000)


@pytest.mark.parametrize("draws", [Draws.seeded(4), Draws.secure()], ids=["seeded", "secure"])
def test_uniforms_lie_in_the_half_open_interval_and_fill_it(draws: Draws) -> None:
    sample = draws.uniform(100_000)
    assert sample.min().item() >= 0.0
    assert sample.max().item() < 1.0
    assert stats.kstest(sample.numpy(), "uniform").pvalue > 1e-6


def _constant(value: float, size: int) -> torch.Tensor:
    return torch.full((size,), value, dtype=torch.float64)


def test_the_extreme_uniforms_give_finite_noise() -> None:
    for value in (0.0, 1.0 - 2.0**-53):
        draws = Draws(partial(_constant, value), private=False)
        assert torch.isfinite(draws.normal(4)).all()


def test_each_example_joins_a_poisson_batch_at_the_sampling_rate() -> None:
    draws, counts = Draws.seeded(5), torch.zeros(20)
    sizes = []
    for _ in range(5000):
        batch = draws.poisson_batch(20, 0.3)
        counts[batch] += 1
        sizes.append(float(len(batch)))
    deviation = math.sqrt(5000 * 0.3 * 0.7)
    assert (counts - 1500).abs().max().item() < 5 * deviation
    # The sizes are binomial, not fixed: that is what the accountant assumes.
    assert torch.tensor(sizes).var().item() == pytest.approx(20 * 0.3 * 0.7, rel=0.1)


def test_at_rate_one_every_example_joins() -> None:
    assert Draws.secure().poisson_batch(9, 1.0).tolist() == list(range(9))
    assert len(Draws.secure().poisson_batch(0, 0.5)) == 0


def test_permutation_holds_every_position_once() -> None:
    found = Draws.seeded(0).permutation(50).tolist()
    assert sorted(found) == list(range(50))
    assert found != list(range(50))


def test_seeds_are_whole_numbers_that_torch_takes() -> None:
    torch.Generator().manual_seed(Draws.secure().seed())
    assert Draws.seeded(1).seed() == Draws.seeded(1).seed()
