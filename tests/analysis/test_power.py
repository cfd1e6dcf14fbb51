"""What an experiment can see: by hand, from published tables, and by carrying experiments out."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.power import detectable_difference, detectable_from, effective_n, icc, variance

RATINGS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])


def test_the_icc_is_the_published_one():
    """Shrout and Fleiss, tables 2 and 4: between 11.24, within 6.26, ICC(1, 1) .17."""
    between, within = 11.24, 6.26
    assert icc(RATINGS) == pytest.approx((between - within) / (between + 3 * within), abs=5e-4)
    assert round(icc(RATINGS), 2) == 0.17
    parts = variance(RATINGS)
    assert parts.within == pytest.approx(within, abs=5e-3)
    assert parts.between == pytest.approx((between - within) / 4, abs=5e-3)


def test_the_icc_is_that_of_the_analysis_of_variance():
    outcomes = np.random.default_rng(0).random((30, 7)) + np.random.default_rng(1).random((30, 1))
    ratio = scipy_stats.f_oneway(*outcomes).statistic
    assert icc(outcomes) == pytest.approx((ratio - 1) / (ratio + 6))


def test_the_icc_has_its_ends():
    assert icc(np.array([[1, 1], [0, 0]])) == 1
    assert icc(np.array([[1, 0], [0, 1], [1, 0]])) == -1


def test_the_icc_of_what_was_simulated_comes_back():
    """Beta-binomial with a + b = 1 / .3 - 1."""
    chance = np.random.default_rng(0)
    rates = chance.beta(0.66 * 7 / 3, 0.34 * 7 / 3, (20_000, 1))
    assert icc((chance.random((20_000, 10)) < rates).astype(int)) == pytest.approx(0.3, abs=0.01)


def test_correlated_images_are_worth_fewer():
    """2,760 images of .3 are worth 2760 / 3.7."""
    assert effective_n(276, 10, 0.3) == pytest.approx(745.95, abs=0.01)
    assert effective_n(276, 10, 0.0) == 2760
    assert effective_n(276, 10, 1.0) == 276
    assert effective_n(276, 1, 0.5) == 276


@pytest.mark.parametrize("wrong", [(0, 10, 0.3), (10, 0, 0.3), (10, 11, -0.1), (10, 5, 1.1), (10, 5, float("nan"))])
def test_there_is_no_such_correlation_or_experiment(wrong):
    with pytest.raises(ValueError, match="must"):
        effective_n(*wrong)


def test_34_pairs_find_half_a_deviation():
    """The textbook case: two-sided paired t test at 5 % and 80 %, d = 0.5, takes 33.4 pairs."""
    found = detectable_difference(34, 1, rate=0.5, icc=0.0)  # a difference has variance 0.5
    assert found / 0.5**0.5 == pytest.approx(0.495, abs=0.001)


def test_many_prompts_follow_the_normal_formula():
    """(z(.975) + z(.8)) * sqrt((between + within / seeds) / prompts), of 2 * .66 * .34 * (1 - .2) * (.1, .9)."""
    single = 2 * 0.66 * 0.34 * 0.8
    expected = (1.959964 + 0.841621) * (single * (0.1 + 0.9 / 10) / 2_000) ** 0.5
    found = detectable_difference(2_000, 10, rate=0.66, icc=0.1, correlation=0.2)
    assert found == pytest.approx(expected, rel=1e-3)


def test_more_seeds_help_only_where_images_of_a_prompt_differ():
    assert detectable_difference(100, 64, 0.5, icc=1.0) == pytest.approx(detectable_difference(100, 1, 0.5, icc=1.0))
    one, many = (detectable_difference(100, seeds, 0.5, icc=0.0) for seeds in (1, 64))
    assert many == pytest.approx(one / 8)


def test_a_pilot_plans_for_itself_by_its_prompts_deviation():
    chance = np.random.default_rng(0)
    method, plain = chance.random((2, 50, 8)) + chance.random((2, 50, 1))
    deviation = (method - plain).mean(1).std(ddof=1)
    assert variance(method - plain).between > 0
    assert detectable_from(method, plain) == pytest.approx(2.875 * deviation / 50**0.5, rel=1e-2)


def test_a_pilot_plans_for_other_numbers():
    """Between 0.5 and within 2 of the differences: rows 0 2, 2 4, whose means have variance 2 = between + 1."""
    differences = np.array([[0.0, 2.0], [2.0, 4.0]])
    parts = variance(differences)
    assert (parts.between, parts.within) == (1, 2)
    planned = detectable_from(differences, np.zeros((2, 2)), prompts=400, seeds=8)
    assert planned == pytest.approx((1.959964 + 0.841621) * (1.25 / 400) ** 0.5, rel=5e-3)


def test_a_negative_variance_of_prompts_counts_as_none():
    differences = np.array([[1.0, -1.0]] * 10)
    assert variance(differences).between == -1
    planned = detectable_from(differences, np.zeros((10, 2)), prompts=1000, seeds=4)
    assert planned == pytest.approx((1.959964 + 0.841621) * (2 / 4 / 1000) ** 0.5, rel=2e-3)


def test_the_detectable_difference_is_detected_at_its_power():
    """1,500 experiments of 40 prompts with 5 seeds; their share of significant ones has an error of 1.0 points."""
    between, within, chance = 0.05, 0.3, np.random.default_rng(2)
    rate, single = 0.5, between + within
    lift = detectable_difference(40, 5, rate, icc=between / single, correlation=1 - single / 0.5)
    prompts = between**0.5 * chance.standard_normal((1_500, 40, 1))
    differences = lift + prompts + within**0.5 * chance.standard_normal((1_500, 40, 5))
    significant = scipy_stats.ttest_1samp(differences.mean(2), 0, axis=1).pvalue < 0.05
    assert significant.mean() == pytest.approx(0.8, abs=0.031)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompts": 1}, {"seeds": 0}, {"rate": 0.0}, {"rate": 1.0}, {"icc": -0.1}, {"icc": 1.1}, {"correlation": 1.0},
        {"power": 1.0}, {"level": 0.0}, {"level": 0.9},
    ],
)  # fmt: skip
def test_plans_out_of_range_are_an_error(wrong):
    with pytest.raises(ValueError, match="must"):
        detectable_difference(**{"prompts": 50, "seeds": 5, "rate": 0.5, "icc": 0.1} | wrong)


@pytest.mark.parametrize("numbers", [{"prompts": 0}, {"seeds": 0}])
def test_a_pilot_plans_for_no_empty_experiment(numbers):
    with pytest.raises(ValueError, match="prompts must be at least 2 and seeds 1"):
        detectable_from(np.eye(3), np.zeros((3, 3)), **numbers)


def test_too_little_data_is_an_error():
    with pytest.raises(ValueError, match="at least 2 prompts and 2 seeds, got 3 and 1"):
        icc(np.array([[1], [0], [1]]))
    with pytest.raises(ValueError, match="at least 2 prompts and 2 seeds, got 1 and 3"):
        variance(np.array([[1, 0, 1]]))
    with pytest.raises(ValueError, match="outcomes must vary, got 1 alone"):
        icc(np.ones((3, 3), int))
    with pytest.raises(ValueError, match=r"by amounts that vary, got 0\.0 alone"):
        detectable_from(np.ones((3, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="1 missing of 4"):
        icc(np.array([[1.0, np.nan], [0.0, 1.0]]))
