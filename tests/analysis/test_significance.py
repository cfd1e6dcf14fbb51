"""Tests of differences: equal to scipy, statsmodels and to what is worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.genmod.cov_struct import Exchangeable
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_estimating_equations import GEE
from statsmodels.stats.contingency_tables import cochrans_q
from statsmodels.stats.multitest import multipletests

from analysis import stats
from analysis.significance import (
    benjamini_hochberg,
    cochran_q,
    friedman,
    gee_logit,
    holm,
    matched_rank_biserial,
    mcnemar_exact,
    paired_d,
    paired_permutation,
    two_way_test,
    wilcoxon,
)
from analysis.stats import two_way_interval


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def pair(prompts: int = 40, seeds: int = 6, lift: float = 0.15, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Found or not by a method and its baseline, with a rate of its own for every prompt."""
    chance = np.random.default_rng(seed)
    rates = np.clip(0.5 + 0.25 * chance.standard_normal((prompts, 1)), 0.05, 0.95)
    lifted = np.clip(rates + lift, 0, 1)
    return tuple((chance.random((prompts, seeds)) < rate).astype(float) for rate in (lifted, rates))


def test_all_signs_are_tried_when_they_are_few():
    """Differences 1, 2, 3, 4: of 16 signs, those with a sum of at least 8 in size are none, 1 negative, both ways."""
    test = paired_permutation(column(1.0, 2, 3, 4), column(0.0, 0, 0, 0), rng())
    assert (test.statistic, test.p, test.count) == (2.5, 2 / 16, 4)
    test = paired_permutation(column(-1.0, 2, 3, 4), column(0.0, 0, 0, 0), rng())
    assert (test.statistic, test.p) == (2.0, 4 / 16)


def test_exact_permutation_is_scipys():
    method, plain = pair(prompts=12)
    differences = method.mean(1) - plain.mean(1)
    theirs = scipy_stats.permutation_test(
        (differences,), lambda d, axis: d.mean(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert paired_permutation(method, plain, rng()).p == pytest.approx(theirs.pvalue)


def test_random_permutation_is_scipys_within_its_error():
    method, plain = pair(lift=0.08)
    differences = method.mean(1) - plain.mean(1)
    theirs = scipy_stats.permutation_test(
        (differences,), lambda d, axis: d.mean(axis), permutation_type="samples", n_resamples=40_000, vectorized=True,
        batch=4_000, rng=rng(),
    ).pvalue  # fmt: skip
    ours = paired_permutation(method, plain, rng(), resamples=40_000).p
    assert 0.005 < theirs < 0.5
    assert ours == pytest.approx(theirs, abs=4 * (2 * theirs * (1 - theirs) / 40_000) ** 0.5)


def test_a_random_permutation_counts_the_observed_one():
    method, plain = np.ones((60, 2)), np.zeros((60, 2))
    assert paired_permutation(method, plain, rng(), resamples=99).p == 1 / 100


def test_sums_that_are_equal_but_for_their_last_bit_are_ties():
    """0.1 + 0.2 against 0.3: of 8 signs, 4 have a sum of 0, 2 one of 0.6; the observed 0.1 + 0.2 - 0.3 is 0."""
    test = paired_permutation(column(0.1, 0.2, 0.0), column(0.0, 0.0, 0.3), rng())
    assert test.p == 1
    assert paired_permutation(column(0.3, 0.1, 0.2), column(0.0, 0.0, 0.0), rng()).p == 2 / 8


@pytest.mark.parametrize("prompts", [10, 60])
def test_batches_change_no_permutation(prompts, monkeypatch):
    method, plain = pair(prompts=prompts, lift=0.05)
    whole = paired_permutation(method, plain, rng(), resamples=2_000)
    monkeypatch.setattr(stats, "CELLS", 300)
    assert paired_permutation(method, plain, rng(), resamples=2_000) == whole


def test_prompts_that_do_not_differ_say_nothing():
    method, plain = pair()
    assert paired_permutation(method, method, rng()).p == 1
    assert wilcoxon(method, method).p == 1
    assert two_way_test(method, method).p == 1
    assert matched_rank_biserial(method, method) == 0
    padded = [np.concatenate([side, np.zeros((50, 6))]) for side in (method[:9], plain[:9])]
    assert paired_permutation(*padded, rng()).p == paired_permutation(method[:9], plain[:9], rng()).p
    assert paired_permutation(*padded, rng()).count <= 9


def test_the_number_of_resamples_must_be_positive():
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        paired_permutation(*pair(), rng(), resamples=0)


def test_wilcoxon_sums_ranks():
    """Differences 1, -2, 3, 4, 5: ranks against are 2. Sums of at most 2 come from {}, {1}, {2}: p = 2 * 3 / 32."""
    test = wilcoxon(column(1.0, -2, 3, 4, 5, 0), column(0.0, 0, 0, 0, 0, 0))
    assert (test.statistic, test.p, test.count) == (2, pytest.approx(6 / 32), 5)


def test_wilcoxon_is_scipys_on_prompts_means():
    method, plain = pair()
    differences = np.round(method.mean(1) - plain.mean(1), 9)
    theirs = scipy_stats.wilcoxon(differences)
    ours = wilcoxon(method, plain)
    assert (ours.statistic, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))


def test_rank_biserial_is_the_difference_of_shares_of_ranks():
    """Ranks 1 to 5, the second against: (13 - 2) / 15."""
    assert matched_rank_biserial(column(1.0, -2, 3, 4, 5, 0), column(0.0, 0, 0, 0, 0, 0)) == pytest.approx(11 / 15)
    assert matched_rank_biserial(column(0.0, 0), column(1.0, 2)) == -1
    assert 0.1 + 0.2 - 0.3 != 0
    assert matched_rank_biserial(np.array([[0.1, 0.2, 0.0]]), np.array([[0.0, 0.0, 0.3]])) == 0


def test_cohens_d_is_the_mean_in_standard_deviations():
    """Differences 1, 2, 3: mean 2, deviation 1."""
    assert paired_d(column(1.0, 2, 3), column(0.0, 0, 0)) == pytest.approx(2)
    with pytest.raises(ValueError, match=r"by amounts that vary, got 1\.0 alone"):
        paired_d(column(1.0, 1), column(0.0, 0))


def test_two_way_p_is_that_of_the_interval_that_ends_at_zero():
    method, plain = pair(lift=0.06)
    test = two_way_test(method, plain)
    assert 0.01 < test.p < 0.5
    edge = two_way_interval(method - plain, level=1 - test.p)
    assert edge.low == pytest.approx(0, abs=1e-9)
    assert test.interval == two_way_interval(method - plain)
    assert test.count == 40


def test_two_way_of_one_seed_effect_finds_nothing_where_prompts_do():
    """All prompts agree that one seed of three gains: three seeds cannot show that others would."""
    gain = np.tile([1.0, 0.0, 0.0], (30, 1))
    assert two_way_test(gain, np.zeros_like(gain)).p == pytest.approx(2 * scipy_stats.t.sf(1, 2))
    assert paired_permutation(gain, np.zeros_like(gain), rng()).p < 0.001


def test_two_way_refuses_what_does_not_vary():
    with pytest.raises(ValueError, match=r"must not all differ from the baseline's by the same, got 1\.0"):
        two_way_test(np.ones((4, 3)), np.zeros((4, 3)))


def test_mcnemar_is_the_binomial_test_of_won_against_lost():
    """8 won and 2 lost of 30: twice the chance of at most 2 heads in 10, 2 * (1 + 10 + 45) / 1024."""
    method = column(*[1] * 8, *[0] * 2, *[1] * 15, *[0] * 5)
    plain = column(*[0] * 8, *[1] * 2, *[1] * 15, *[0] * 5)
    test = mcnemar_exact(method, plain)
    assert (test.statistic, test.p, test.count) == (2, pytest.approx(112 / 1024), 10)
    assert test.p == pytest.approx(scipy_stats.binomtest(8, 10).pvalue)


def test_mcnemar_of_equal_methods_is_one():
    assert mcnemar_exact(column(1, 0), column(1, 0)).p == 1


def test_mcnemar_refuses_several_seeds_and_says_why():
    with pytest.raises(ValueError, match=r"one seed, got 6: images of one prompt resemble .* take gee_logit"):
        mcnemar_exact(*pair())


def log_odds(rate: float) -> float:
    return float(np.log(rate / (1 - rate)))


def test_gee_is_the_difference_of_logits_with_the_sandwich_error():
    """In closed form: a prompt moves the estimate by its sums of residuals, each over images * rate * (1 - rate).

    Mancl and DeRouen's correction is P / (P - 1) where all prompts have as many images.
    """
    method, plain = pair()
    up, down = method.mean(), plain.mean()
    moves = (method - up).sum(1) / (240 * up * (1 - up)) - (plain - down).sum(1) / (240 * down * (1 - down))
    error = 40 / 39 * (moves**2).sum() ** 0.5
    test = gee_logit(method, plain)
    assert test.interval.estimate == pytest.approx(log_odds(up) - log_odds(down))
    assert test.statistic == pytest.approx((log_odds(up) - log_odds(down)) / error)
    assert test.p == pytest.approx(2 * scipy_stats.norm.sf(abs(test.statistic)))
    assert test.interval.high - test.interval.estimate == pytest.approx(1.959964 * error, rel=1e-6)


def test_gee_with_an_exchangeable_correlation_agrees():
    """Both ends of a pair have all images of a prompt: how much they are thought to resemble does not matter."""
    method, plain = pair()
    found = np.concatenate([method.ravel(), plain.ravel()])
    model = np.stack([np.ones(480), np.repeat([1.0, 0.0], 240)], 1)
    groups = np.tile(np.repeat(np.arange(40), 6), 2)
    fit = GEE(found, model, groups, family=Binomial(), cov_struct=Exchangeable()).fit(cov_type="bias_reduced")
    test = gee_logit(method, plain)
    assert test.interval.estimate == pytest.approx(fit.params[1], rel=1e-4)
    assert test.p == pytest.approx(fit.pvalues[1], rel=0.05)


def test_gee_turns_its_sign_with_the_methods():
    method, plain = pair()
    there, back = gee_logit(method, plain), gee_logit(plain, method)
    assert there.statistic > 2
    assert back.statistic == pytest.approx(-there.statistic)


@pytest.mark.parametrize(
    ("method", "plain", "why"),
    [
        ([[1, 1], [1, 1]], [[1, 0], [0, 1]], r"rates inside \(0, 1\), whose odds are finite, got 0.5 and 1"),
        ([[1, 0], [0, 1]], [[0, 0], [0, 0]], r"rates inside \(0, 1\), whose odds are finite, got 0 and 0.5"),
        ([[1, 0], [0, 1]], [[1, 0], [0, 1]], "images that differ between method and baseline, got none"),
        ([[1, 0], [0, 1]], [[0, 1], [1, 0]], "prompts between which the difference varies, got none"),
        ([[1, 0]], [[0, 1]], "at least 2 prompts, got 1"),
        ([[1, 0], [0, 0.5]], [[0, 1], [1, 0]], "must be 0 or 1"),
        ([[1, 0], [0, 0]], [[0, 1], [1, 2]], "must be 0 or 1"),
    ],
)
def test_gee_says_why_it_cannot_be_fitted(method, plain, why):
    with pytest.raises(ValueError, match=why):
        gee_logit(np.array(method, float), np.array(plain, float))


def test_gee_needs_a_level():
    with pytest.raises(ValueError, match="level must lie in"):
        gee_logit(*pair(), level=1.0)


def methods(seeds: int = 4) -> dict[str, np.ndarray]:
    (first, second), (third, _) = pair(seeds=seeds), pair(seeds=seeds, seed=1)
    return {"plain": second, "ours": first, "theirs": third}


def test_friedman_ranks_methods_on_each_prompt():
    """Three methods, always in one order on four prompts: rank sums 4, 8, 12, Q = 12 / (4*3*4) * 224 - 3*4*4 = 8."""
    base = np.arange(4.0)[:, None] * np.ones(2)
    test = friedman({"a": base, "b": base + 0.1, "c": base + 0.3})
    assert (test.statistic, test.count) == (pytest.approx(8), 4)
    assert test.p == pytest.approx(np.exp(-4))  # chi-square with two degrees of freedom


def test_friedman_is_scipys_on_prompts_means():
    theirs = scipy_stats.friedmanchisquare(*(np.round(values.mean(1), 9) for values in methods().values()))
    assert friedman(methods()).p == pytest.approx(theirs.pvalue)


def test_cochrans_q_by_hand():
    """Rows 110, 101, 100, 100: columns 4 1 1, rows 2 2 1 1. Q = 2 * (3 * 18 - 36) / (3 * 6 - 10) = 4.5."""
    found = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 1, 1]])
    test = cochran_q({name: found[:, [i]] for i, name in enumerate("abc")})
    assert (test.statistic, test.count) == (pytest.approx(4.5), 4)
    assert test.p == pytest.approx(np.exp(-2.25))
    assert test.p == pytest.approx(cochrans_q(found).pvalue)


def test_methods_that_are_all_alike_do_not_differ():
    alike = dict.fromkeys("abc", column(1.0, 0.0, 1.0))
    assert cochran_q(alike).p == 1
    assert friedman(alike).p == 1


def test_several_methods_are_three_of_one_shape():
    for test in (friedman, cochran_q):
        with pytest.raises(ValueError, match="at least 3 of one shape, got 2"):
            test({"a": column(1, 0), "b": column(0, 1)})
        with pytest.raises(ValueError, match="at least 3 of one shape, got 3"):
            test({"a": column(1, 0), "b": column(0, 1), "c": column(1, 0, 1)})


def test_cochran_refuses_several_seeds_and_says_why():
    with pytest.raises(ValueError, match=r"one seed, got 4: images of one prompt resemble .* take friedman"):
        cochran_q(methods())


def test_holm_by_hand():
    """0.01 * 4, 0.02 * 3, then 0.03 * 2 but not below the one before, 0.5 * 1."""
    corrected = holm({"a": 0.03, "b": 0.01, "c": 0.5, "d": 0.02})
    assert corrected == pytest.approx({"a": 0.06, "b": 0.04, "c": 0.5, "d": 0.06})
    assert list(corrected) == ["a", "b", "c", "d"]


@settings(deadline=None, max_examples=20)  # statsmodels takes a fifth of a second for each
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_both_corrections_are_those_of_statsmodels(values):
    p_values = {str(index): value for index, value in enumerate(values)}
    for correct, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        assert list(correct(p_values).values()) == pytest.approx(multipletests(values, method=method)[1])


def test_benjamini_hochberg_is_scipys():
    p_values = dict(zip("abcde", (0.01, 0.3, 0.02, 0.04, 0.9), strict=True))
    theirs = scipy_stats.false_discovery_control(list(p_values.values()))
    assert list(benjamini_hochberg(p_values).values()) == pytest.approx(list(theirs))


@pytest.mark.parametrize("p_values", [{}, {"a": float("nan")}, {"a": 1.2}, {"a": -0.1, "b": 0.5}])
def test_p_values_are_whole_and_between_0_and_1(p_values):
    for correct in (holm, benjamini_hochberg):
        with pytest.raises(ValueError, match="p_values must be at least one, all in"):
            correct(p_values)


@pytest.mark.parametrize(
    "test", [lambda a, b: paired_permutation(a, b, rng()), wilcoxon, two_way_test, gee_logit, matched_rank_biserial,
             paired_d, mcnemar_exact]
)  # fmt: skip
def test_missing_outcomes_and_wrong_pairs_are_errors(test):
    method, plain = pair(seeds=1) if test is mcnemar_exact else pair()
    with pytest.raises(ValueError, match="must pair with the baseline's"):
        test(method[1:], plain)
    for side in (method, plain):
        side[3, 0] = np.nan
        with pytest.raises(ValueError, match="1 missing of"):
            test(method, plain)
        side[3, 0] = 0


def test_missing_outcomes_of_several_methods_are_errors():
    for test, seeds in ((friedman, 4), (cochran_q, 1)):
        several = methods(seeds)
        several["ours"][0, 0] = np.nan
        with pytest.raises(ValueError, match="1 missing of"):
            test(several)
