"""What a method costs beside the baseline: ratios of batches of one prompt, their median, and how sure it is.

Conventions: all batches of a prompt were made one after the other by one worker, so that a ratio is of a pair; where
a run was gone on with elsewhere they were not, and are left out. The median is over prompts. Unlike `metrics.overhead`,
which repeats runs in turn, each prompt was timed once.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.scoreboard import SEED
from analysis.stats import Interval
from metrics.overhead import paired_interval

PLACE = ["host", "device", "threads"]  # what a batch was timed on
SUMMED = ["images", "seconds", "passes", "gradient_passes"]


def paired_costs(batches: pd.DataFrame, baseline: str = "plain") -> tuple[pd.DataFrame, int]:
    """Return what methods took for prompts where the baseline was timed on the same machine, and what is left out.

    Args:
        batches: a row per batch: method, prompt_id, images, seconds, passes, gradient_passes, peak_bytes, host, device,
            threads.
        baseline: the method that others are compared with.

    Returns:
        A row per method and prompt, added over its batches: method, prompt_id, images, seconds, passes,
        gradient_passes, peak_bytes; and the number of prompts of which a method, or the baseline, was timed on several
        machines, devices or numbers of threads, or on others than the baseline. A prompt without the baseline has no
        row and is not counted.
    """
    paired = batches["prompt_id"].isin(batches.loc[batches["method"] == baseline, "prompt_id"])
    by_place = batches[paired].groupby(["method", "prompt_id", *PLACE], sort=False)
    sums = by_place[SUMMED].sum().join(by_place[["peak_bytes"]].max()).reset_index()
    once = sums[~sums.duplicated(["method", "prompt_id"], keep=False)]
    found = once.merge(once.loc[once["method"] == baseline, ["prompt_id", *PLACE]], on=["prompt_id", *PLACE])
    asked, kept = (frame.groupby("prompt_id")["method"].nunique() for frame in (sums, found))
    left_out = int((asked > kept.reindex(asked.index, fill_value=0)).sum())
    return pd.DataFrame(found, columns=["method", "prompt_id", *SUMMED, "peak_bytes"]), left_out


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
