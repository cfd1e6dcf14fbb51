"""What a method costs beside the baseline: ratios of batches of one prompt, their median, and how sure it is.

Conventions: all batches of a prompt were made one after the other on one machine, so that a ratio is of a pair; the
median is over prompts. Unlike `metrics.overhead`, which repeats runs in turn, each prompt was timed once.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.scoreboard import SEED
from analysis.stats import Interval
from metrics.overhead import paired_interval


def median_ratio(ratios: Float[np.ndarray, " prompt"]) -> Interval:
    """Return the median with its interval, a bootstrap over prompts; a point where all prompts have one ratio."""
    value = float(np.median(ratios))
    if np.ptp(ratios) == 0:
        return Interval(value, value, value)
    low, high = paired_interval(ratios, np.ones_like(ratios), np.random.default_rng(SEED))
    return Interval(value, low + 1, high + 1)


def relative_costs(costs: pd.DataFrame, by: str = "seconds", baseline: str = "plain") -> pd.DataFrame:
    """Return how many times the baseline each method costs.

    Args:
        costs: a row per method and prompt_id, with a column `by`.
        by: what is paid, "seconds" or "passes".
        baseline: the method whose batch of the same prompt each is compared with.

    Returns:
        By method, value, value_low, value_high, as in `median_ratio`.

    Raises:
        ValueError: a prompt's baseline is missing, or cost nothing.
    """
    wide = costs.pivot(index="prompt_id", columns="method", values=by)
    if baseline not in wide or not (wide[baseline].to_numpy() > 0).all():
        raise ValueError(f"costs must have {by} above 0 of {baseline} for every prompt")
    found = {}
    for method in costs["method"].unique():
        ratios = (wide[method] / wide[baseline]).dropna().to_numpy(np.float64)
        found[method] = median_ratio(ratios).columns("value")
    return pd.DataFrame.from_dict(found, "index")
