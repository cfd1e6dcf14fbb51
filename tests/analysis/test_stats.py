"""Intervals: equal to a readable loop and to scipy, and as wide as prompts make them."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint

from analysis import stats
from analysis.stats import (
    Interval,
    Record,
    bootstrap_difference,
    bootstrap_rate,
    two_way_interval,
    wilson_rate,
    win_tie_loss,
)


def correlated(prompts: int = 66, seeds: int = 16, spread: float = 0.3, seed: int = 0) -> np.ndarray:
    """Found or not, with a rate of its own for every prompt."""
    rng = np.random.default_rng(seed)
    rates = np.clip(0.5 + spread * rng.standard_normal(prompts), 0, 1)
    return (rng.random((prompts, seeds)) < rates[:, None]).astype(np.int64)


def by_loop(outcomes: np.ndarray, rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    """The definition, read aloud: draw prompts, put all their images together, take the mean."""
    rates = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(outcomes), len(outcomes))
        images = [image for prompt in drawn for image in outcomes[prompt]]
        rates.append(sum(images) / len(images))
    return float(np.percentile(rates, 2.5)), float(np.percentile(rates, 97.5))


def test_a_rates_interval_is_that_of_a_readable_loop():
    outcomes = correlated(prompts=12, seeds=5)
    interval = bootstrap_rate(outcomes, np.random.default_rng(3), resamples=400)
    expected = by_loop(outcomes, np.random.default_rng(3), 400)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12)
    assert interval.estimate == pytest.approx(outcomes.sum() / 60)


def test_a_differences_interval_is_scipys_over_the_prompts_mean_differences():
    method, plain = correlated(seed=1), correlated(seed=2)
    interval = bootstrap_difference(method, plain, np.random.default_rng(5), resamples=2_000)
    differences = (method.mean(1) - plain.mean(1),)
    theirs = scipy_stats.bootstrap(
        differences, np.mean, n_resamples=2_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_default_is_ten_thousand_resamples_and_95_percent():
    outcomes = correlated()
    rng = np.random.default_rng(0)
    default = bootstrap_rate(outcomes, rng)
    rates = outcomes.mean(1)[np.random.default_rng(0).integers(0, 66, (10_000, 66))].mean(1)
    assert (default.low, default.high) == pytest.approx(tuple(np.quantile(rates, [0.025, 0.975])), abs=1e-12)
    spent = np.random.default_rng(0)
    spent.integers(0, 66, (10_000, 66))
    assert rng.bit_generator.state == spent.bit_generator.state


def test_prompts_are_drawn_with_all_their_seeds():
    """A prompt that always and one that never succeeds: the rate of two drawn prompts is 0, 0.5 or 1."""
    outcomes = np.array([[1] * 50, [0] * 50])
    interval = bootstrap_rate(outcomes, np.random.default_rng(0))
    assert (interval.low, interval.estimate, interval.high) == (0, 0.5, 1)


def test_pairing_takes_what_methods_share_out_of_the_interval():
    plain = correlated()
    better = plain.copy()
    better[:, 0] = 1
    paired = bootstrap_difference(better, plain, np.random.default_rng(0))
    alone = bootstrap_rate(better, np.random.default_rng(0))
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_a_method_against_itself_differs_by_exactly_nothing():
    outcomes = correlated()
    interval = bootstrap_difference(outcomes, outcomes, np.random.default_rng(0))
    assert (interval.low, interval.estimate, interval.high) == (0, 0, 0)
    assert win_tie_loss(outcomes, outcomes) == Record(0, 66, 0)


def test_wins_ties_and_losses_are_counted_by_prompt():
    method = np.array([[1, 1], [1, 0], [0, 0], [1, 0]])
    plain = np.array([[1, 0], [0, 1], [1, 0], [0, 0]])
    assert win_tie_loss(method, plain) == Record(wins=2, ties=1, losses=1)


def test_the_last_bit_of_a_sum_breaks_no_tie():
    assert 0.1 + 0.2 - 0.3 != 0
    assert win_tie_loss(np.array([[0.1, 0.2, 0.0]]), np.array([[0.0, 0.0, 0.3]])) == Record(0, 1, 0)


def test_batches_change_nothing_but_the_memory(monkeypatch):
    outcomes = correlated()
    whole = bootstrap_rate(outcomes, np.random.default_rng(0), resamples=100)
    monkeypatch.setattr(stats, "CELLS", 66 * 7)  # fifteen batches
    assert bootstrap_rate(outcomes, np.random.default_rng(0), resamples=100) == whole


@pytest.mark.parametrize(
    ("resample", "prompts", "seeds"), [("prompts", 5_000, 1), ("two-way", 5_000, 2), ("nested", 250, 20)]
)
def test_memory_does_not_grow_with_resamples(resample, prompts, seeds):
    """All at once, 1,000 resamples would draw 5,000,000 numbers and use them: 40 MB twice."""
    outcomes = correlated(prompts=prompts, seeds=seeds)
    tracemalloc.start()
    bootstrap_rate(outcomes, np.random.default_rng(0), resamples=1_000, resample=resample)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6


def test_two_way_draws_prompts_and_seeds_independently():
    """The definition, read aloud: each image counts as often as its prompt was drawn, times its seed."""
    outcomes = correlated(prompts=12, seeds=5).astype(float)
    interval = bootstrap_rate(outcomes, np.random.default_rng(3), resamples=300, resample="two-way")
    rng = np.random.default_rng(3)
    prompts = rng.multinomial(12, [1 / 12] * 12, 300)
    seeds = rng.multinomial(5, [1 / 5] * 5, 300)
    means = []
    for times, counts in zip(prompts, seeds, strict=True):
        rows = [i for i in range(12) for _ in range(times[i])]
        columns = [j for j in range(5) for _ in range(counts[j])]
        images = [outcomes[i, j] for i in rows for j in columns]
        assert len(images) == 60
        means.append(sum(images) / 60)
    expected = np.percentile(means, [2.5, 97.5])
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert interval.estimate == pytest.approx(outcomes.mean())


def test_nested_draws_the_seeds_of_every_drawn_prompt_anew():
    outcomes = correlated(prompts=12, seeds=5).astype(float)
    interval = bootstrap_rate(outcomes, np.random.default_rng(3), resamples=300, resample="nested")
    rng = np.random.default_rng(3)
    prompts, seeds = rng.integers(0, 12, (300, 12)), rng.integers(0, 5, (300, 12, 5))
    means = [
        sum(outcomes[i, j] for place, i in enumerate(drawn) for j in seeds[turn, place]) / 60
        for turn, drawn in enumerate(prompts)
    ]
    expected = np.percentile(means, [2.5, 97.5])
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=1e-12)


def test_seeds_that_alone_decide_widen_the_two_way_interval_alone():
    """Ten seeds, of which five succeed on every prompt: a drawn mean is the share of successes among ten draws."""
    outcomes = np.tile([1.0, 0.0] * 5, (20, 1))
    rng = np.random.default_rng(0)
    two_way = bootstrap_rate(outcomes, rng, resample="two-way")
    quantiles = scipy_stats.binom(10, 0.5).ppf([0.025, 0.975]) / 10
    assert (two_way.low, two_way.high) == pytest.approx(tuple(quantiles))
    prompts = bootstrap_rate(outcomes, rng)
    assert (prompts.low, prompts.high) == (0.5, 0.5)


def test_nested_intervals_are_wider_by_the_noise_of_seeds():
    """With no prompt effect the variance within prompts counts once for prompts, and once more for seeds."""
    outcomes = np.random.default_rng(1).integers(0, 2, (200, 10)).astype(float)
    widths = {}
    for resample in ("prompts", "nested"):
        interval = bootstrap_rate(outcomes, np.random.default_rng(0), resample=resample)
        widths[resample] = interval.high - interval.low
    assert widths["nested"] / widths["prompts"] == pytest.approx(2**0.5, rel=0.06)


def test_bca_is_scipys_over_prompts():
    outcomes = correlated() ** 2 * 3.5 - 1  # any numbers, not rates alone
    interval = bootstrap_rate(outcomes, np.random.default_rng(5), resamples=999, kind="bca")
    theirs = scipy_stats.bootstrap(
        (outcomes.mean(1),), np.mean, n_resamples=999, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_bca_leans_with_skewed_prompts():
    skewed = np.random.default_rng(0).exponential(1, (40, 1))
    percentile, bca = (bootstrap_rate(skewed, np.random.default_rng(1), kind=kind) for kind in ("percentile", "bca"))
    assert bca.low > percentile.low
    assert bca.high > percentile.high


def test_the_bca_interval_of_prompts_that_are_all_alike_is_a_point():
    interval = bootstrap_rate(np.full((5, 3), 0.1), np.random.default_rng(0), kind="bca")
    assert (interval.low, interval.high) == (interval.estimate, interval.estimate)


def test_bca_without_a_resample_on_each_side_is_an_error():
    with pytest.raises(ValueError, match="must lie on both sides of the mean for bca, got 1 that do not"):
        bootstrap_rate(correlated(), np.random.default_rng(0), resamples=1, kind="bca")


@pytest.mark.parametrize("resample", ["two-way", "nested"])
def test_bca_is_for_prompts_alone(resample):
    with pytest.raises(ValueError, match="resample and kind must be one of"):
        bootstrap_rate(correlated(), np.random.default_rng(0), resample=resample, kind="bca")


def test_two_way_needs_two_seeds():
    with pytest.raises(ValueError, match="at least 2 seeds to be drawn two-way, got 1"):
        bootstrap_rate(correlated(seeds=1), np.random.default_rng(0), resample="two-way")


def test_the_two_way_interval_is_that_of_the_mean_squares_by_hand():
    """Rows 1 3, 5 7, 6 14. Mean 6; row means 2 6 10, column means 4 8.

    MS rows 2 * (16 + 0 + 16) / 2 = 32; MS columns 3 * (4 + 4) / 1 = 24; residuals 1 -1, 1 -1, -2 2: MS 12 / 2 = 6.
    Variance of the mean (32 + 24 - 6) / 6 = 25 / 3; freedom 50^2 / (32^2 / 2 + 24^2 / 1 + 6^2 / 2) = 2500 / 1106.
    """
    interval = two_way_interval(np.array([[1, 3], [5, 7], [6, 14]]), level=0.9)
    margin = scipy_stats.t.ppf(0.95, 2500 / 1106) * (25 / 3) ** 0.5
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((6, 6 - margin, 6 + margin))
    assert interval.level == 0.9


def test_the_two_way_variance_is_never_below_that_of_the_noise():
    """Rows and columns of one mean: 0 1, 1 0. Residuals of 1/2: MS 1, over 4 images, 1 degree of freedom."""
    interval = two_way_interval(np.array([[0, 1], [1, 0]]))
    assert interval.high - 0.5 == pytest.approx(scipy_stats.t.ppf(0.975, 1) * 0.5)


@pytest.mark.parametrize(("shape", "level"), [((1, 5), 0.95), ((5, 1), 0.95), ((5, 5), 1.0)])
def test_the_two_way_interval_needs_two_of_each_and_a_level(shape, level):
    with pytest.raises(ValueError, match="2 prompts and 2 seeds and level be in"):
        two_way_interval(np.ones(shape), level)


def test_one_image_per_prompt_has_wilsons_interval():
    """By his formula, 7 of 20 found: (p + z^2/2n -+ z sqrt(p q / n + z^2 / 4n^2)) / (1 + z^2 / n)."""
    interval = wilson_rate(np.array([[1]] * 7 + [[0]] * 13))
    z = 1.959964
    half = z * (0.35 * 0.65 / 20 + z**2 / 1600) ** 0.5
    ends = tuple((0.35 + z**2 / 40 + sign * half) / (1 + z**2 / 20) for sign in (-1, 1))
    assert (interval.low, interval.high) == pytest.approx(ends, abs=1e-6)
    assert (interval.low, interval.high) == pytest.approx(proportion_confint(7, 20, method="wilson"))
    assert interval.estimate == 0.35


def test_wilsons_interval_refuses_several_seeds_and_says_why():
    with pytest.raises(ValueError, match=r"one seed, got 16: images of one prompt resemble .* bootstrap_rate"):
        wilson_rate(correlated())


def test_wilsons_interval_is_of_found_or_not():
    with pytest.raises(ValueError, match="must be 0 or 1, got 1 others of 2"):
        wilson_rate(np.array([[0.5], [1.0]]))
    with pytest.raises(ValueError, match="level must lie in"):
        wilson_rate(np.array([[0], [1]]), level=0.0)


def test_an_interval_prints_in_percent():
    assert str(Interval(0.057, -0.016, 0.135)) == "5.7 [-1.6, 13.5]"


def test_missing_outcomes_are_an_error_not_an_average():
    outcomes = correlated().astype(float)
    outcomes[3, 4] = np.nan
    with pytest.raises(ValueError, match="1 missing of 1056"):
        bootstrap_rate(outcomes, np.random.default_rng(0))
    outcomes[3, 4] = np.inf
    with pytest.raises(ValueError, match="1 missing of 1056"):
        two_way_interval(outcomes)


def test_matrices_that_do_not_pair_are_an_error():
    with pytest.raises(ValueError, match=r"must pair with the baseline's \(66, 16\), got \(65, 16\)"):
        bootstrap_difference(correlated()[1:], correlated(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="must pair"):
        win_tie_loss(correlated()[1:], correlated())


@pytest.mark.parametrize("wrong", [{"resamples": 0}, {"level": 1.0}])
def test_settings_out_of_range_are_an_error(wrong):
    with pytest.raises(ValueError, match="resamples must be at least 1 and level in"):
        bootstrap_rate(correlated(), np.random.default_rng(0), **wrong)


def test_no_outcomes_are_an_error():
    with pytest.raises(ValueError, match="must be a matrix of prompts and seeds"):
        bootstrap_rate(np.zeros((0, 3)), np.random.default_rng(0))


def test_an_interval_is_cut_where_a_rate_cannot_be_and_its_estimate_stays():
    wide = Interval(0.5, -0.25, 1.5, 0.9)
    assert wide.within(0.0, 1.0) == Interval(0.5, 0.0, 1.0, 0.9)
    assert wide.within(-1.0, 2.0) == wide
