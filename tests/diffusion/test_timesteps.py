import numpy as np
import pytest
from scipy.stats import kstest, norm

from ppvilg.diffusion import TimestepSampler

SAMPLER = TimestepSampler(1000, [0, 100, 600, 1000])


@pytest.mark.parametrize("expert, low, high", [(None, 0, 1000), (0, 0, 100), (1, 100, 600), (2, 600, 1000)])
def test_samples_are_uniform_over_the_block(expert, low, high):
    timesteps = SAMPLER.sample(20_000, np.random.default_rng(0), expert)
    assert timesteps.dtype == np.int64 and timesteps.shape == (20_000,)
    assert timesteps.min() >= low and timesteps.max() < high
    counts, _ = np.histogram(timesteps, bins=10, range=(low, high))
    assert abs(counts - 2000).max() < 250  # five standard deviations are 212


def test_the_generator_alone_decides():
    draws = [SAMPLER.sample(50, np.random.default_rng(seed), 1).tolist() for seed in (7, 7, 8)]
    assert draws[0] == draws[1] != draws[2]


def test_every_timestep_of_a_small_block_is_drawn():
    sampler = TimestepSampler(1000, [0, 997, 1000])
    assert set(sampler.sample(200, np.random.default_rng(0), 1).tolist()) == {997, 998, 999}


def test_fixed_timesteps_are_evenly_spread_inside_the_block():
    assert SAMPLER.fixed(4, 0).tolist() == [12, 37, 62, 87]
    assert SAMPLER.fixed(2).tolist() == [250, 750]
    assert SAMPLER.fixed(100, 0).tolist() == list(range(100))
    assert SAMPLER.fixed(5, 2).dtype == np.int64


def test_experts_and_boundaries_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="from 0 to 2, got 3"):
        SAMPLER.sample(1, np.random.default_rng(0), 3)
    for boundaries in ([0, 500], [10, 1000], [0, 600, 500, 1000]):
        with pytest.raises(ValueError, match="must ascend from 0 to 1000"):
            TimestepSampler(1000, boundaries)


def test_logit_normal_timesteps_follow_scipys_normal_distribution():
    sampler = TimestepSampler(1000, weighting_scheme="logit_normal", logit_mean=1.0, logit_std=1.4)
    rng = np.random.default_rng(0)
    drawn = sampler.sample(20_000, rng)
    shares = (drawn + rng.random(20_000)) / 1000  # anywhere within its timestep: continuous again
    assert kstest(np.log(shares / (1.0 - shares)), norm(1.0, 1.4).cdf).pvalue > 0.01


def test_a_block_keeps_its_part_of_the_logit_normal_density():
    settings = {"weighting_scheme": "logit_normal", "logit_mean": 1.0, "logit_std": 1.4}
    whole, blocks = TimestepSampler(1000, None, **settings), TimestepSampler(1000, [0, 100, 600, 1000], **settings)
    everything = whole.sample(200_000, np.random.default_rng(0))
    inside = everything[(everything >= 100) & (everything < 600)]
    drawn = blocks.sample(20_000, np.random.default_rng(1), 1)
    assert drawn.min() >= 100 and drawn.max() < 600
    edges = np.linspace(100, 600, 11)
    expected, counts = (np.histogram(values, edges)[0] / len(values) for values in (inside, drawn))
    assert abs(expected - counts).max() < 0.015  # five standard deviations


def test_weighting_schemes_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="'logit_normal'.*got 'cosmap'"):
        TimestepSampler(1000, weighting_scheme="cosmap")
    with pytest.raises(ValueError, match="logit_std must be positive, got 0"):
        TimestepSampler(1000, weighting_scheme="logit_normal", logit_std=0)
