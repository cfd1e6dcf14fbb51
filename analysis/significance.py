"""Whether a difference is more than chance: tests that respect that images of one prompt resemble each other.

Conventions:
    Outcomes are matrices ``prompt seed``, methods paired image by image, as in `analysis.stats`. p-values are
    two-sided. What is tested are differences of prompts' means, rounded to nine digits, so that a sum's last bit
    breaks no tie.
Which test:
    paired_permutation  any metric: flips the signs of prompts' differences. The default; the seeds are taken as they
                        are.
    wilcoxon            any metric: its ranks, as a check that no few prompts decide.
    two_way_test        any metric, over prompts and seeds that are both drawn from many: for methods to which some
                        seeds are kinder than others on all prompts.
    mcnemar_exact       found or not, one seed per prompt.
    gee_logit           found or not, any seeds: the odds ratio between the methods, images of a prompt clustered.
    friedman            more than two methods, any metric; then pairs.
    cochran_q           more than two methods, found or not, one seed per prompt; then pairs.
    holm                corrects a family of p-values: everything that one table claims.
    benjamini_hochberg  corrects a family that is looked through for where to look next, such as categories.
Effect sizes: matched_rank_biserial, in [-1, 1]; paired_d, the mean difference in standard deviations over prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Real
from scipy import stats
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_estimating_equations import GEE
from statsmodels.stats.contingency_tables import cochrans_q, mcnemar

from analysis.stats import RESAMPLES, Interval, batches, binary, checked, paired, two_way_error, two_way_interval

DIGITS = 9
WEAK = "images of one prompt resemble each other, and a test that takes them as independent finds what is not there"

Outcomes = Real[np.ndarray, "prompt seed"]
Baseline = Real[np.ndarray, "_ _"]  # that it has the same shape is said in words


@dataclass(frozen=True)
class Test:
    """What a test found.

    Attributes:
        name: of the test.
        statistic: what the test goes by; its function says what that is.
        p: two-sided p-value, in [0, 1].
        count: of what decides: prompts or images that differ, or all prompts, as the function says.
        interval: of what is tested, on the test's own scale, where the test has one.
    """

    __test__: ClassVar[bool] = False  # pytest takes the name for a case of its own

    name: str
    statistic: float
    p: float
    count: int
    interval: Interval | None = None


def prompt_differences(outcomes: Outcomes, baseline: Baseline) -> Float[np.ndarray, " prompt"]:
    """Return how much higher each prompt's mean is than the baseline's, to nine digits.

    Raises:
        ValueError: the two are not of one shape, or an outcome is missing.
    """
    return np.round(paired(outcomes, baseline).mean(1), DIGITS)


def paired_permutation(
    outcomes: Outcomes, baseline: Baseline, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Test:
    """Return how often random signs put the prompts' mean difference as far from 0 as it is.

    All signs are tried if the prompts that differ have at most `resamples` of them; otherwise so many are drawn, and
    the observed one is counted among them. The statistic is the mean difference; prompts that differ are counted.

    Source: Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010), on counting the observed one.

    Raises:
        ValueError: the two are not of one shape, an outcome is missing, or `resamples` is below 1.
    """
    differences = prompt_differences(outcomes, baseline)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    moved = differences[differences != 0]
    count, far = len(moved), abs(moved.sum()) - 10.0**-DIGITS * max(1, len(moved))
    exact = 2**count <= resamples
    extreme = start = 0
    for size in batches(2**count if exact else resamples, max(1, count)):
        codes = np.arange(start, start + size)[:, None] >> np.arange(count) & 1 if exact else None
        flips = rng.integers(0, 2, (size, count)) if codes is None else codes
        extreme, start = extreme + int((abs((2 * flips - 1) @ moved) >= far).sum()), start + size
    p = extreme / 2**count if exact else (extreme + 1) / (resamples + 1)
    return Test("paired permutation", float(differences.mean()), p, count)


def wilcoxon(outcomes: Outcomes, baseline: Baseline) -> Test:
    """Return Wilcoxon's signed-rank test of the prompts' differences; prompts that do not differ are left out.

    The statistic is the smaller of the two sums of ranks; prompts that differ are counted.

    Raises:
        ValueError: the two are not of one shape, or an outcome is missing.
    """
    differences = prompt_differences(outcomes, baseline)
    moved = differences[differences != 0]
    if not moved.size:
        return Test("Wilcoxon", 0.0, 1.0, 0)
    result = stats.wilcoxon(moved)
    return Test("Wilcoxon", float(result.statistic), float(result.pvalue), len(moved))


def two_way_test(outcomes: Outcomes, baseline: Baseline, level: float = 0.95) -> Test:
    """Return the t test of the mean difference over prompts and seeds that are both drawn from many.

    Its interval is `analysis.stats.two_way_interval` of the paired differences, which leaves out 0 where p is below
    1 - level. It is not the inverse of the two-way bootstrap: that is too wide where seeds hardly matter and too narrow
    where few seeds matter most. All prompts are counted.

    Raises:
        ValueError: the two are not of one shape, an outcome is missing, there are fewer than two prompts or seeds,
            `level` is out of range, or all images differ by the same, which is not 0.
    """
    values = paired(outcomes, baseline)
    interval = two_way_interval(values, level)
    error, freedom = two_way_error(values)
    if np.ptp(values) == 0:
        if interval.estimate:
            raise ValueError(f"outcomes must not all differ from the baseline's by the same, got {interval.estimate}")
        return Test("two-way t", 0.0, 1.0, len(values), interval)
    statistic = interval.estimate / error
    return Test("two-way t", statistic, float(2 * stats.t.sf(abs(statistic), freedom)), len(values), interval)


def mcnemar_exact(found: Outcomes, baseline: Baseline) -> Test:
    """Return McNemar's exact test of one image per prompt.

    The statistic is the smaller one of won and lost; both together are counted.

    Raises:
        ValueError: there is more than one seed, the two are not of one shape, or an outcome is neither 0 nor 1.
    """
    _one_seed(binary(found), "gee_logit or paired_permutation")
    difference = paired(found, binary(baseline))
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    result = mcnemar(np.array([[0, won], [lost, 0]]), exact=True)  # where methods agree decides nothing
    return Test("McNemar exact", float(result.statistic), float(result.pvalue), won + lost)


def gee_logit(found: Outcomes, baseline: Baseline, level: float = 0.95) -> Test:
    """Return the log odds ratio of found between method and baseline, with prompts as clusters.

    Generalised estimating equations with independence as working correlation: the estimate is the difference of the
    logits of the two rates over all images, and its error is the robust one with Mancl and DeRouen's correction for
    few prompts. The statistic is z; all prompts are counted.

    Source: Liang and Zeger, Biometrika 73 (1986); Mancl and DeRouen, Biometrics 57 (2001).

    Raises:
        ValueError: the two are not of one shape, an outcome is neither 0 nor 1, `level` is out of range, or the model
            cannot be fitted: one prompt, a rate of 0 or 1, or no variation between prompts.
    """
    values, theirs = binary(found), binary(baseline)
    difference = paired(values, theirs)
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if len(values) < 2:
        raise ValueError(f"gee_logit must have at least 2 prompts, got {len(values)}")
    if any(rate in (0, 1) for rate in (values.mean(), theirs.mean())):
        rates = f"{theirs.mean():g} and {values.mean():g}"
        raise ValueError(f"gee_logit must have rates inside (0, 1), whose odds are finite, got {rates}")
    if not difference.any():
        raise ValueError("gee_logit must have images that differ between method and baseline, got none")
    model = np.stack([np.ones(2 * values.size), np.repeat([0.0, 1.0], values.size)], 1)
    prompts = np.tile(np.repeat(np.arange(len(values)), values.shape[1]), 2)
    both = np.concatenate([theirs.ravel(), values.ravel()])
    fit = GEE(both, model, prompts, family=Binomial()).fit(cov_type="bias_reduced")
    if fit is None or not fit.bse[1] > 10.0**-DIGITS:
        raise ValueError("gee_logit must have prompts between which the difference varies, got none")
    ratio, error = float(fit.params[1]), float(fit.bse[1])
    margin = float(stats.norm.ppf((1 + level) / 2)) * error
    interval = Interval(ratio, ratio - margin, ratio + margin, level)
    return Test("GEE logit", ratio / error, float(2 * stats.norm.sf(abs(ratio / error))), len(values), interval)


def friedman(methods: Mapping[str, Outcomes]) -> Test:
    """Return Friedman's test of more than two methods by their ranks on each prompt; all prompts are counted.

    Raises:
        ValueError: there are fewer than three methods, they are not of one shape, or an outcome is missing.
    """
    means = np.round(np.stack([values.mean(1) for values in _together(methods)]), DIGITS)
    if not np.ptp(means, 0).any():
        return Test("Friedman", 0.0, 1.0, means.shape[1])
    result = stats.friedmanchisquare(*means)
    return Test("Friedman", float(result.statistic), float(result.pvalue), means.shape[1])


def cochran_q(methods: Mapping[str, Outcomes]) -> Test:
    """Return Cochran's Q test of more than two methods on one image per prompt; prompts that differ are counted.

    Raises:
        ValueError: there is more than one seed, there are fewer than three methods, they are not of one shape, or an
            outcome is neither 0 nor 1.
    """
    found = np.concatenate([_one_seed(binary(values), "friedman") for values in _together(methods)], 1)
    differ = int(np.ptp(found, 1).sum())
    if not differ:
        return Test("Cochran's Q", 0.0, 1.0, 0)
    result = cochrans_q(found)
    return Test("Cochran's Q", float(result.statistic), float(result.pvalue), differ)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values corrected for all of them being looked at: below 0.05, all claims hold with 95 %.

    The family is what is handed over: for a table, every method against the baseline in every metric shown.

    Source: Holm, Scand. J. Stat. 6 (1979).

    Raises:
        ValueError: there is no p-value, or one does not lie in [0, 1].
    """
    values = _checked(p_values)
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(raised, 1)
    return dict(zip(p_values, corrected.tolist(), strict=True))


def benjamini_hochberg(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values so that of those below 0.05, 5 % are false on average: to explore, not to claim.

    Source: Benjamini and Hochberg, J. R. Stat. Soc. B 57 (1995).

    Raises:
        ValueError: as in `holm`.
    """
    corrected = stats.false_discovery_control(_checked(p_values), method="bh")
    return dict(zip(p_values, corrected.tolist(), strict=True))


def matched_rank_biserial(outcomes: Outcomes, baseline: Baseline) -> float:
    """Return by what share the ranks of prompts that got better outweigh the others, in [-1, 1]; 0 if none differs.

    Source: Kerby, Comprehensive Psychology 3 (2014).

    Raises:
        ValueError: the two are not of one shape, or an outcome is missing.
    """
    differences = prompt_differences(outcomes, baseline)
    moved = differences[differences != 0]
    if not moved.size:
        return 0.0
    ranks = stats.rankdata(abs(moved))
    return float((np.sign(moved) * ranks).sum() / ranks.sum())


def paired_d(outcomes: Outcomes, baseline: Baseline) -> float:
    """Return Cohen's d of the prompts' differences: their mean in their standard deviations.

    Raises:
        ValueError: the two are not of one shape, an outcome is missing, or the differences do not vary.
    """
    differences = prompt_differences(outcomes, baseline)
    if np.ptp(differences) == 0:
        raise ValueError(f"outcomes must differ from the baseline's by amounts that vary, got {differences[0]} alone")
    return float(differences.mean() / differences.std(ddof=1))


def _together(methods: Mapping[str, Outcomes]) -> list[Float[np.ndarray, "prompt seed"]]:
    shapes = {values.shape for values in methods.values()}
    if len(methods) < 3 or len(shapes) != 1:
        raise ValueError(f"methods must be at least 3 of one shape, got {len(methods)} of {sorted(shapes)}")
    return [checked(values) for values in methods.values()]


def _one_seed(values: Float[np.ndarray, "prompt seed"], instead: str) -> Float[np.ndarray, "prompt 1"]:
    if values.shape[1] != 1:
        raise ValueError(f"outcomes must have one seed, got {values.shape[1]}: {WEAK}; take {instead}")
    return values


def _checked(p_values: Mapping[str, float]) -> Float[np.ndarray, " test"]:
    values = list(p_values.values())
    if not values or not all(0 <= p <= 1 for p in values):
        raise ValueError(f"p_values must be at least one, all in [0, 1], got {dict(p_values)}")
    return np.array(values, np.float64)
