"""Intervals: equal to a readable loop and to scipy, and as wide as prompts make them."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.stats import Interval, Record, bootstrap_difference, bootstrap_rate, win_tie_loss


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


def test_an_interval_prints_in_percent():
    assert str(Interval(0.057, -0.016, 0.135)) == "5.7 [-1.6, 13.5]"


def test_missing_outcomes_are_an_error_not_an_average():
    outcomes = correlated().astype(float)
    outcomes[3, 4] = np.nan
    with pytest.raises(ValueError, match="1 missing of 1056"):
        bootstrap_rate(outcomes, np.random.default_rng(0))


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
