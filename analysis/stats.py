"""How sure a rate is: intervals that respect that images of one prompt resemble each other.

Conventions: outcomes are matrices ``prompt seed`` of numbers in [0, 1] (found or not, as a rule), the same
prompts and seeds for every method, so that methods pair image by image. The prompt is what one generalises
over: it is drawn with all its seeds (cluster bootstrap). Drawing images as if they were independent makes
intervals up to 2.4 times too narrow. Chance comes from an explicit ``numpy`` generator.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

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
) -> Interval:
    """Return the mean outcome with its percentile interval over resampled prompts.

    Source: Miller, arXiv 2411.00640, on errors of clustered questions.

    Args:
        outcomes: one row per prompt, one column per seed.
        rng: where chance comes from.
        resamples: how many times the prompts are drawn.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: there is no outcome or one is missing (NaN), or `resamples` or `level` is out of range.
    """
    means = _checked(outcomes).mean(1)
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be at least 1 and level in (0, 1), got {resamples} and {level}")
    drawn = means[rng.integers(0, len(means), (resamples, len(means)))].mean(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(means.mean()), float(low), float(high), level)


def bootstrap_difference(
    outcomes: Real[np.ndarray, "prompt seed"],
    baseline: Real[np.ndarray, "_ _"],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Return how much higher the mean outcome is than the baseline's, paired by prompt and seed.

    Args:
        outcomes: of the method.
        baseline: of what it is compared with, on the same prompts and seeds in the same order.
        rng: where chance comes from.
        resamples: how many times the prompts are drawn.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: the two are not of one shape, or as in `bootstrap_rate`.
    """
    return bootstrap_rate(_paired(outcomes, baseline), rng, resamples, level)


def win_tie_loss(outcomes: Real[np.ndarray, "prompt seed"], baseline: Real[np.ndarray, "_ _"]) -> Record:
    """Return on how many prompts the mean outcome is above, at and below the baseline's.

    Raises:
        ValueError: the two are not of one shape, or an outcome is missing.
    """
    total = np.round(_paired(outcomes, baseline).sum(1), 9)  # a sum's last bit must not break a tie
    return Record(int((total > 0).sum()), int((total == 0).sum()), int((total < 0).sum()))


def _paired(
    outcomes: Real[np.ndarray, "prompt seed"], baseline: Real[np.ndarray, "_ _"]
) -> Float[np.ndarray, "prompt seed"]:
    if outcomes.shape != baseline.shape:
        raise ValueError(f"outcomes must pair with the baseline's {baseline.shape}, got {outcomes.shape}")
    return _checked(outcomes) - _checked(baseline)


def _checked(outcomes: Real[np.ndarray, "prompt seed"]) -> Float[np.ndarray, "prompt seed"]:
    values = np.asarray(outcomes, np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"outcomes must be a matrix of prompts and seeds, got shape {values.shape}")
    if np.isnan(values).any():
        missing = int(np.isnan(values).sum())
        raise ValueError(f"outcomes must be whole, got {missing} missing of {values.size}")
    return values
