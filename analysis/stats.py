"""How sure a mean is: intervals that respect that images of one prompt resemble each other.

Conventions:
    Outcomes are matrices ``prompt seed`` of any finite numbers: found or not, CLIP cosines, LPIPS. All methods
    have the same prompts and seeds in the same order, so that methods pair image by image.
    The prompt is what one generalises over. Taking images as if they were independent makes intervals up to 2.4
    times too narrow.
    Chance comes from an explicit ``numpy`` generator; memory does not grow with the number of resamples.
What is drawn again (`Resample`):
    prompts  prompts with all their seeds (cluster bootstrap): the seeds are taken as they are. The default.
    two-way  prompts and seeds, independently of each other (pigeonhole bootstrap): generalises over both where the
             same seeds serve every prompt. Its variance counts the noise of single images up to three times, so it
             is too wide where seeds hardly matter. Where seeds matter most and are fewer than about 16, percentiles
             are too narrow: take `two_way_interval`.
    nested   prompts, then seeds within each: counts the noise of seeds twice, too wide by intent.
Ends of the interval (`Kind`):
    Quantiles of the resampled means (percentile), or these corrected for bias and skewness (bca, for prompts alone).
Intervals need spread to see any: if all prompts have one mean, or there is one prompt, the interval is a point.
Sources: Miller, arXiv 2411.00640 (errors of clustered questions); Owen, The pigeonhole bootstrap, Ann. Appl. Stat. 1
(2007); Owen and Eckles, Bootstrapping data arrays of arbitrary order, Ann. Appl. Stat. 6 (2012).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Real
from scipy import stats

RESAMPLES = 10_000
CELLS = 2**20  # numbers that one batch of resamples may draw

Resample = Literal["prompts", "two-way", "nested"]
Kind = Literal["percentile", "bca"]
WAYS = (("prompts", "percentile"), ("prompts", "bca"), ("two-way", "percentile"), ("nested", "percentile"))


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def within(self, least: float, most: float) -> "Interval":
        """Return it without what cannot be: with few images a rate's interval reaches beyond 0 and 1."""
        return replace(self, low=max(self.low, least), high=min(self.high, most))

    def columns(self, name: str) -> dict[str, float]:
        """Return it as a table has it: name, name_low, name_high."""
        return {name: self.estimate, f"{name}_low": self.low, f"{name}_high": self.high}

    def __str__(self) -> str:
        """Return it in percent (of a rate) or points (of a difference): "5.7 [-1.6, 13.5]"."""
        return f"{100 * self.estimate:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Record:
    """On how many prompts a method is better than another, as good, and worse."""

    wins: int
    ties: int
    losses: int


def bootstrap_rate(
    outcomes: Real[np.ndarray, "prompt seed"],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    resample: Resample = "prompts",
    kind: Kind = "percentile",
) -> Interval:
    """Return the mean outcome with its bootstrap interval.

    Args:
        outcomes: one row per prompt, one column per seed.
        rng: where chance comes from.
        resamples: how many times outcomes are drawn again.
        level: of confidence, in (0, 1).
        resample: what is drawn again, see above.
        kind: how the interval's ends are found; "bca" needs "prompts".

    Raises:
        ValueError: there is no outcome or one is missing (NaN or infinite), `resamples` or `level` is out of range,
            `resample` and `kind` do not go together, or "two-way" has fewer than two seeds.
    """
    values = checked(outcomes)
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be at least 1 and level in (0, 1), got {resamples} and {level}")
    if (resample, kind) not in WAYS:
        raise ValueError(f"resample and kind must be one of {WAYS}, got {(resample, kind)}")
    if resample == "two-way" and values.shape[1] < 2:
        raise ValueError("outcomes must have at least 2 seeds to be drawn two-way, got 1")
    means = values.mean(1)
    if kind == "bca":
        low, high = _bca(means, rng, resamples, level)
    else:
        drawn = _DRAWN[resample](values, rng, resamples)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(means.mean()), float(low), float(high), level)


def bootstrap_difference(
    outcomes: Real[np.ndarray, "prompt seed"],
    baseline: Real[np.ndarray, "_ _"],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    resample: Resample = "prompts",
    kind: Kind = "percentile",
) -> Interval:
    """Return how much higher the mean outcome is than the baseline's, paired by prompt and seed.

    Args:
        outcomes: of the method.
        baseline: of what it is compared with, on the same prompts and seeds in the same order.
        rng: where chance comes from.
        resamples: how many times outcomes are drawn again.
        level: of confidence, in (0, 1).
        resample: as in `bootstrap_rate`.
        kind: as in `bootstrap_rate`.

    Raises:
        ValueError: the two are not of one shape, or as in `bootstrap_rate`.
    """
    return bootstrap_rate(paired(outcomes, baseline), rng, resamples, level, resample, kind)


def two_way_interval(outcomes: Real[np.ndarray, "prompt seed"], level: float = 0.95) -> Interval:
    """Return the mean outcome with its t interval over prompts and seeds that are both drawn from many.

    The model is prompt + seed + rest, all random; the mean's variance is put together from their mean squares, its
    degrees of freedom are Satterthwaite's. No chance is involved, and it holds with few seeds too. For a difference
    give it the paired differences.

    Source: Satterthwaite, Biometrics Bulletin 2 (1946); Searle, Casella and McCulloch, Variance Components, 1992.

    Raises:
        ValueError: an outcome is missing, there are fewer than two prompts or seeds, or `level` is out of range.
    """
    values = checked(outcomes)
    if min(values.shape) < 2 or not 0 < level < 1:
        shape = values.shape
        raise ValueError(f"outcomes must have 2 prompts and 2 seeds and level be in (0, 1), got {shape} and {level}")
    mean = float(values.mean())
    error, freedom = two_way_error(values)
    margin = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Interval(mean, mean - margin, mean + margin, level)


def two_way_error(values: Float[np.ndarray, "prompt seed"]) -> tuple[float, float]:
    """Return the standard error of the mean over random prompts and seeds, and its degrees of freedom."""
    prompts, seeds = values.shape
    rows, columns, mean = values.mean(1, keepdims=True), values.mean(0, keepdims=True), values.mean()
    freedoms = np.array([prompts - 1, seeds - 1, (prompts - 1) * (seeds - 1)])
    sums = [seeds * ((rows - mean) ** 2).sum(), prompts * ((columns - mean) ** 2).sum()]
    squares = np.array([*sums, ((values - rows - columns + mean) ** 2).sum()]) / freedoms
    total = squares[0] + squares[1] - squares[2]
    if total <= squares[2]:  # neither prompts nor seeds show beyond the noise: the variance is at least the noise's
        return float(np.sqrt(squares[2] / values.size)), float(freedoms[2])
    return float(np.sqrt(total / values.size)), float(total**2 / (squares**2 / freedoms).sum())


def wilson_rate(found: Real[np.ndarray, "prompt seed"], level: float = 0.95) -> Interval:
    """Return the share of images found with its Wilson interval: for one seed per prompt alone.

    Raises:
        ValueError: there is more than one seed, an outcome is neither 0 nor 1 or is missing, or `level` is out of
            range.
    """
    values = binary(found)
    if values.shape[1] != 1:
        raise ValueError(
            f"found must have one seed, got {values.shape[1]}: images of one prompt resemble each other, and an "
            "interval that takes them as independent is too narrow; take bootstrap_rate"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    ends = stats.binomtest(int(values.sum()), len(values)).proportion_ci(level, "wilson")
    return Interval(float(values.mean()), float(ends.low), float(ends.high), level)


def win_tie_loss(outcomes: Real[np.ndarray, "prompt seed"], baseline: Real[np.ndarray, "_ _"]) -> Record:
    """Return on how many prompts the mean outcome is above, at and below the baseline's.

    Raises:
        ValueError: the two are not of one shape, or an outcome is missing.
    """
    total = np.round(paired(outcomes, baseline).sum(1), 9)  # a sum's last bit must not break a tie
    return Record(int((total > 0).sum()), int((total == 0).sum()), int((total < 0).sum()))


def paired(
    outcomes: Real[np.ndarray, "prompt seed"], baseline: Real[np.ndarray, "_ _"]
) -> Float[np.ndarray, "prompt seed"]:
    """Return the differences, image by image.

    Raises:
        ValueError: the two are not of one shape, or an outcome is missing.
    """
    if outcomes.shape != baseline.shape:
        raise ValueError(f"outcomes must pair with the baseline's {baseline.shape}, got {outcomes.shape}")
    return checked(outcomes) - checked(baseline)


def checked(outcomes: Real[np.ndarray, "prompt seed"]) -> Float[np.ndarray, "prompt seed"]:
    """Return the outcomes in float64.

    Raises:
        ValueError: there is no outcome, or one is missing (NaN or infinite).
    """
    values = np.asarray(outcomes, np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"outcomes must be a matrix of prompts and seeds, got shape {values.shape}")
    if missing := int((~np.isfinite(values)).sum()):
        raise ValueError(f"outcomes must be whole, got {missing} missing of {values.size} (NaN or infinite)")
    return values


def binary(found: Real[np.ndarray, "prompt seed"]) -> Float[np.ndarray, "prompt seed"]:
    """Return the outcomes in float64.

    Raises:
        ValueError: as in `checked`, or an outcome is neither 0 nor 1.
    """
    values = checked(found)
    if other := int((~np.isin(values, (0, 1))).sum()):
        raise ValueError(f"outcomes must be 0 or 1, got {other} others of {values.size}")
    return values


def batches(resamples: int, cells: int) -> list[int]:
    """Return how many resamples of so many numbers each are drawn at a time, so that memory is bounded."""
    most = max(1, CELLS // cells)
    return [most] * (resamples // most) + ([rest] if (rest := resamples % most) else [])


def _prompts(values: Float[np.ndarray, "prompt seed"], rng: np.random.Generator, resamples: int) -> np.ndarray:
    means, count = values.mean(1), len(values)
    sizes = batches(resamples, count)
    return np.concatenate([means[rng.integers(0, count, (size, count))].mean(1) for size in sizes])


def _two_way(values: Float[np.ndarray, "prompt seed"], rng: np.random.Generator, resamples: int) -> np.ndarray:
    def times(size: int, count: int) -> np.ndarray:  # how often each of `count` is drawn, as a share
        return rng.multinomial(count, np.full(count, 1 / count), size) / count

    prompts, seeds = values.shape
    sizes = batches(resamples, prompts + seeds)
    return np.concatenate([((times(size, prompts) @ values) * times(size, seeds)).sum(1) for size in sizes])


def _nested(values: Float[np.ndarray, "prompt seed"], rng: np.random.Generator, resamples: int) -> np.ndarray:
    def means(size: int) -> np.ndarray:
        rows = rng.integers(0, values.shape[0], (size, len(values), 1))
        return values[rows, rng.integers(0, values.shape[1], (size, *values.shape))].mean((1, 2))

    return np.concatenate([means(size) for size in batches(resamples, values.size)])


_DRAWN: dict[str, Callable[..., np.ndarray]] = {"prompts": _prompts, "two-way": _two_way, "nested": _nested}


def _bca(
    means: Float[np.ndarray, " prompt"], rng: np.random.Generator, resamples: int, level: float
) -> tuple[float, float]:
    if np.ptp(means) == 0:
        return float(means.mean()), float(means.mean())
    options = {"n_resamples": resamples, "batch": batches(resamples, len(means))[0], "confidence_level": level}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an interval that has no ends: raised below
        ends = stats.bootstrap((means,), np.mean, method="BCa", rng=rng, **options).confidence_interval
    if not np.isfinite([ends.low, ends.high]).all():
        raise ValueError(f"resamples must lie on both sides of the mean for bca, got {resamples} that do not")
    return float(ends.low), float(ends.high)
