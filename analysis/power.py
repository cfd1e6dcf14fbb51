"""How small a difference an experiment can see: what to know before making images.

Conventions:
    Outcomes are matrices ``prompt seed`` as in `analysis.stats`. A paired difference's variance has two parts: what
    prompts differ by (between), and what the images of one prompt differ by (within); the mean over P prompts of S
    seeds has variance (between + within / S) / P. More seeds shrink the second part alone.
    The intraclass correlation is between / (between + within): 0 if images of a prompt resemble each other no more
    than others, 1 if they are all alike. One of rates says nothing of the one of paired differences.
    Powers are those of the two-sided t test over prompts; seeds are taken as they are.
Metrics:
    icc                    intraclass correlation, one-way, of single images: ICC(1, 1).
    effective_n            how many independent images are worth as much.
    detectable_difference  the smallest difference that a planned experiment finds with a given power.
    detectable_from        the same, from outcomes of a pilot.
Sources: Shrout and Fleiss, Psychological Bulletin 86 (1979); Miller, arXiv 2411.00640, section 5.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Real
from statsmodels.stats.power import TTestPower

from analysis.stats import checked, paired


@dataclass(frozen=True)
class Variance:
    """A variance of single images, in parts; the estimate of `between` may be below 0 where prompts hardly differ."""

    between: float
    within: float

    def of_prompt(self, seeds: int) -> float:
        """Return the variance of a prompt's mean over so many seeds."""
        return max(self.between, 0.0) + self.within / seeds


def variance(outcomes: Real[np.ndarray, "prompt seed"]) -> Variance:
    """Return the parts of the variance by one-way analysis of variance.

    Raises:
        ValueError: an outcome is missing, or there are fewer than two prompts or seeds.
    """
    values = checked(outcomes)
    prompts, seeds = values.shape
    if prompts < 2 or seeds < 2:
        raise ValueError(f"outcomes must have at least 2 prompts and 2 seeds, got {prompts} and {seeds}")
    means = values.mean(1, keepdims=True)
    within = float(((values - means) ** 2).sum() / (prompts * (seeds - 1)))
    return Variance(float(means.var(ddof=1)) - within / seeds, within)


def icc(outcomes: Real[np.ndarray, "prompt seed"]) -> float:
    """Return the intraclass correlation, in [-1 / (seeds - 1), 1].

    Raises:
        ValueError: an outcome is missing, there are fewer than two prompts or seeds, or all outcomes are alike.
    """
    if np.ptp(checked(outcomes)) == 0:
        raise ValueError(f"outcomes must vary, got {outcomes.flat[0]} alone")
    parts = variance(outcomes)
    return parts.between / (parts.between + parts.within)


def effective_n(prompts: int, seeds: int, icc: float) -> float:
    """Return how many independent images tell as much of the mean: prompts * seeds / (1 + (seeds - 1) * icc).

    Raises:
        ValueError: there is no image, or `icc` is no correlation that so many seeds can have.
    """
    _check(prompts, seeds, least=1)
    inflation = 1 + (seeds - 1) * icc
    if not (icc <= 1 and inflation > 0):
        raise ValueError(f"icc must lie in (-1 / (seeds - 1), 1], got {icc} for {seeds} seeds")
    return prompts * seeds / inflation


def detectable_difference(
    prompts: int,
    seeds: int,
    rate: float,
    icc: float,
    correlation: float = 0.0,
    power: float = 0.8,
    level: float = 0.05,
) -> float:
    """Return the smallest difference of rates that is found with a probability of `power`.

    The difference of two images, found or not, at equal rates has variance 2 rate (1 - rate) (1 - correlation).

    Args:
        prompts: how many are planned.
        seeds: of each prompt.
        rate: expected of both methods.
        icc: of the paired differences, see `icc`; not of the rates.
        correlation: between the two methods' outcomes of one prompt and seed. 0 makes no use of pairing.
        power: the probability, in (level, 1).
        level: of the test.

    Raises:
        ValueError: an argument is out of range.
    """
    if not (0 < rate < 1 and 0 <= icc <= 1 and -1 <= correlation < 1):
        given = f"{rate}, {icc} and {correlation}"
        raise ValueError(f"rate must lie in (0, 1), icc in [0, 1] and correlation in [-1, 1), got {given}")
    single = 2 * rate * (1 - rate) * (1 - correlation)
    return _detectable(Variance(icc * single, (1 - icc) * single), prompts, seeds, power, level)


def detectable_from(
    outcomes: Real[np.ndarray, "prompt seed"],
    baseline: Real[np.ndarray, "_ _"],
    prompts: int | None = None,
    seeds: int | None = None,
    power: float = 0.8,
    level: float = 0.05,
) -> float:
    """Return the smallest mean difference that is found with a probability of `power`, as a pilot varies.

    Args:
        outcomes: of the method, in the pilot.
        baseline: of what it is compared with.
        prompts: how many are planned, None for as many as the pilot has.
        seeds: of each prompt, None for as many as the pilot has.
        power: the probability, in (level, 1).
        level: of the test.

    Raises:
        ValueError: the two are not of one shape, an outcome is missing, the pilot has fewer than two prompts or
            seeds or no difference varies, or an argument is out of range.
    """
    differences = paired(outcomes, baseline)
    if np.ptp(differences) == 0:
        only = differences[0, 0]
        raise ValueError(f"outcomes must differ from the baseline's by amounts that vary, got {only} alone")
    pilot = differences.shape
    planned = (pilot[0] if prompts is None else prompts, pilot[1] if seeds is None else seeds)
    return _detectable(variance(differences), *planned, power, level)


def _detectable(parts: Variance, prompts: int, seeds: int, power: float, level: float) -> float:
    _check(prompts, seeds, least=2)
    if not 0 < level < power < 1:
        raise ValueError(f"power and level must satisfy 0 < level < power < 1, got {power} and {level}")
    in_deviations = TTestPower().solve_power(nobs=prompts, alpha=level, power=power)
    return float(in_deviations) * float(np.sqrt(parts.of_prompt(seeds)))


def _check(prompts: int, seeds: int, least: int) -> None:
    if prompts < least or seeds < 1:
        raise ValueError(f"prompts must be at least {least} and seeds 1, got {prompts} and {seeds}")
