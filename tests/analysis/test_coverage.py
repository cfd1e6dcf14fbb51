"""Intervals hold the truth as often as they say and tests err as seldom; what ignores prompts or seeds does not.

A share near 95 % or 5 % has a Monte Carlo error of sqrt(0.05 * 0.95 / experiments): 1.0 points for 500 experiments,
1.3 for 300. Bounds are the promised ones, or three errors around 5 %.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.special import expit

from analysis.significance import Test, gee_logit, paired_permutation, two_way_test
from analysis.stats import Interval, bootstrap_difference, bootstrap_rate, two_way_interval

SEEDS, RATE, ICC = 10, 0.66, 0.3
STRENGTH = 1 / ICC - 1


def rates(rng: np.random.Generator, prompts: int) -> np.ndarray:
    """A beta distribution of rates: images of one prompt correlate by ICC."""
    return rng.beta(RATE * STRENGTH, (1 - RATE) * STRENGTH, (prompts, 1))


def images(rng: np.random.Generator, chances: np.ndarray, seeds: int = SEEDS) -> np.ndarray:
    return (rng.random((len(chances), seeds)) < chances).astype(float)


def crossed(seeds: int, of_prompt: float, of_seed: float) -> Iterator[np.ndarray]:
    """Prompts and seeds, the same seeds for all prompts, each move the log odds by a normal amount."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        logits = of_prompt * rng.standard_normal((60, 1)) + of_seed * rng.standard_normal(seeds)
        yield images(rng, expit(0.7 + logits), seeds)


def crossed_mean(of_prompt: float, of_seed: float) -> float:
    """The mean over all prompts and seeds there are, by quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    return float((weights * expit(0.7 + np.hypot(of_prompt, of_seed) * points)).sum() / weights.sum())


def equals(experiments: int, prompts: int, seeds: int, of_prompt: float, of_seed: float = 0.0):
    """Pairs of methods of one rate, though some prompts (and some seeds) like the one better and some the other."""
    rng = np.random.default_rng(2)
    for _ in range(experiments):
        shared, lean = rng.standard_normal((2, prompts, 1))
        half = (of_prompt * lean + of_seed * rng.standard_normal(seeds)) / 2
        yield images(rng, expit(shared + half), seeds), images(rng, expit(shared - half), seeds)


def coverage(intervals: Iterable[Interval], truth: float) -> float:
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def alarms(tests: Iterable[Test]) -> float:
    return float(np.mean([test.p < 0.05 for test in tests]))


@pytest.mark.parametrize(("prompts", "experiments"), [(276, 500), (60, 500)])
def test_drawing_prompts_covers_the_rate_where_taking_images_as_independent_does_not(prompts, experiments):
    rng, chance = np.random.default_rng(0), np.random.default_rng(5)
    outcomes = [images(chance, rates(chance, prompts)) for _ in range(experiments)]
    drawn = coverage((bootstrap_rate(found, rng, 400) for found in outcomes), RATE)
    naive = [scipy_stats.binomtest(int(f.sum()), f.size).proportion_ci(0.95, "wilson") for f in outcomes]
    assert 0.93 <= drawn <= 0.97
    assert np.mean([ends.low <= RATE <= ends.high for ends in naive]) < 0.75  # its error is sqrt(3.7) times too small


def test_bca_covers_the_rate():
    rng, chance = np.random.default_rng(0), np.random.default_rng(5)
    outcomes = (images(chance, rates(chance, 60)) for _ in range(300))
    assert 0.93 <= coverage((bootstrap_rate(found, rng, 400, kind="bca") for found in outcomes), RATE) <= 0.97


def test_drawing_prompts_covers_a_paired_difference():
    """A method that saves a fifth of a prompt's misses gains 0.2 * 0.34 on average, and not the same on each prompt."""
    rng, chance, intervals = np.random.default_rng(0), np.random.default_rng(5), []
    for _ in range(500):
        plain = rates(chance, 60)
        method = images(chance, plain + 0.2 * (1 - plain))
        intervals.append(bootstrap_difference(method, images(chance, plain), rng, 400))
    assert 0.93 <= coverage(intervals, 0.2 * (1 - RATE)) <= 0.97


@pytest.mark.parametrize(
    ("seeds", "of_prompt", "of_seed", "prompts_cover"), [(10, 1.0, 0.7, 0.85), (16, 0.3, 1.0, 0.7)]
)
def test_drawing_both_covers_the_mean_over_prompts_and_seeds_where_prompts_alone_do_not(
    seeds, of_prompt, of_seed, prompts_cover
):
    rng, truth = np.random.default_rng(0), crossed_mean(of_prompt, of_seed)
    outcomes = list(crossed(seeds, of_prompt, of_seed))
    both = coverage((bootstrap_rate(found, rng, 300, resample="two-way") for found in outcomes), truth)
    assert 0.9 <= both <= 0.99
    assert 0.92 <= coverage((two_way_interval(found) for found in outcomes), truth) <= 0.98
    assert coverage((bootstrap_rate(found, rng, 300) for found in outcomes), truth) < prompts_cover


def test_percentiles_of_five_seeds_that_matter_most_are_too_narrow_and_mean_squares_are_not():
    rng, truth = np.random.default_rng(0), crossed_mean(0.3, 1.0)
    outcomes = list(crossed(5, 0.3, 1.0))
    assert coverage((bootstrap_rate(found, rng, 300, resample="two-way") for found in outcomes), truth) < 0.91
    assert 0.92 <= coverage((two_way_interval(found) for found in outcomes), truth) <= 0.98


def test_permutation_errs_in_one_of_twenty():
    """A little less, to be exact: sums of found or not tie, and ties count against the method."""
    rng = np.random.default_rng(0)
    pairs = equals(500, prompts=30, seeds=8, of_prompt=1.0)
    assert alarms(paired_permutation(*pair, rng, 499) for pair in pairs) == pytest.approx(0.05, abs=0.029)


def test_gee_errs_in_one_of_twenty_where_mcnemar_over_all_images_errs_far_more():
    pairs = list(equals(300, prompts=40, seeds=16, of_prompt=1.5))
    won, lost = (np.array([(sign * (a - b) > 0).sum() for a, b in pairs]) for sign in (1, -1))
    mcnemar = 2 * scipy_stats.binom.cdf(np.minimum(won, lost), won + lost, 0.5)
    assert alarms(gee_logit(*pair) for pair in pairs) == pytest.approx(0.05, abs=0.038)
    assert (mcnemar < 0.05).mean() > 0.2


def test_seeds_that_favour_a_method_alarm_the_permutation_of_prompts_and_not_the_two_way_test():
    rng, pairs = np.random.default_rng(0), list(equals(300, prompts=40, seeds=8, of_prompt=0.5, of_seed=0.8))
    assert alarms(two_way_test(*pair) for pair in pairs) == pytest.approx(0.05, abs=0.038)
    assert alarms(paired_permutation(*pair, rng, 199) for pair in pairs) > 0.15
