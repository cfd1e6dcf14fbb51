"""A set metric with its interval, and what to beware of at so few images.

Conventions:
    Half of either set is drawn many times without replacement, and the deviation of the values is taken for the
    error of the whole (delete-half jackknife). It says how much another draw of images would move the value at this
    N; it does not remove a bias. Of equal distributions the intervals of KID and cmmd_u are too wide.
    A bootstrap is not offered: an image drawn twice adds to the bias of FID and the V-statistic.
    Images are taken as independent: of many seeds of few prompts the interval is too narrow.
Source: Shao and Wu 1989, Annals of Statistics 17, for the jackknife; the metrics are in ``metrics/fid.py``.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from metrics.fid import (
    Matrix,
    References,
    Rng,
    cmmd,
    cubic,
    fid,
    frechet,
    gaussian,
    kid_unbiased,
    matrices,
    memberships,
    squared_mmd,
    units,
)

SetMetric = Literal["fid", "kid", "cmmd_u", "cmmd_v"]
SET_METRICS: tuple[SetMetric, ...] = ("fid", "kid", "cmmd_u", "cmmd_v")
FEW_FOR_FID = 2048  # the channels of Inception
FEW_FOR_KID = 100  # below, an interval from half of the images is a guess
FEW_FOR_V = 5000  # below, cmmd_v's bias is of the size of published differences


@dataclass(frozen=True)
class SetScore:
    """A set metric, its 95 % interval, the sizes of the sets, and what to beware of."""

    metric: SetMetric
    value: float
    low: float
    high: float
    n: int
    n_reference: int
    warnings: tuple[str, ...]


def subsample_interval(
    metric: SetMetric,
    features: Matrix,
    references: References,
    rng: Rng,
    subsamples: int = 100,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval of a set metric from random halves of both sets.

    Args:
        metric: "fid", "kid" (`kid_unbiased`), "cmmd_u" or "cmmd_v".
        features: of the images.
        references: of the images they are compared with.
        rng: draws the halves.
        subsamples: how many.
        confidence: in (0, 1).

    Raises:
        ValueError: as in the metric, an unknown metric, less than four images, less than two halves.
    """
    if metric not in SET_METRICS:
        raise ValueError(f"metric must be one of {', '.join(SET_METRICS)}, got {metric!r}")
    x, y = matrices(features, references, 4)
    if subsamples < 2 or not 0 < confidence < 1:
        raise ValueError(f"subsamples must be at least 2 at a confidence in (0, 1), got {subsamples}, {confidence}")
    first, second = memberships(rng, (len(x), len(y)), (len(x) // 2, len(y) // 2), subsamples)
    first = np.hstack([np.ones((len(x), 1)), first])  # the whole sets, then their halves
    second = np.hstack([np.ones((len(y), 1)), second])
    if metric == "fid":
        pairs = zip(first.T > 0, second.T > 0, strict=True)
        values = np.array([frechet(x[rows], y[others]) for rows, others in pairs])
    elif metric == "kid":
        values = squared_mmd(cubic, x, y, first, second)
    else:
        values = squared_mmd(gaussian, units(x), units(y), first, second, metric == "cmmd_v")
    margin = NormalDist().inv_cdf((1 + confidence) / 2) * values[1:].std(ddof=1)
    return float(values[0] - margin), float(values[0] + margin)


def small_sample_warnings(metric: SetMetric, n: int, n_reference: int, dimension: int) -> tuple[str, ...]:
    """Return what to beware of in a set metric of so many images and channels.

    Raises:
        ValueError: the metric is unknown.
    """
    if metric not in SET_METRICS:
        raise ValueError(f"metric must be one of {', '.join(SET_METRICS)}, got {metric!r}")
    least = min(n, n_reference)
    biased = metric in ("fid", "cmmd_v")
    found = {
        f"{metric} of {n} and {n_reference} images: compare it with values at no other numbers, and better equal ones":
            biased and n != n_reference,
        f"fid of {least} images is biased upwards: from {FEW_FOR_FID} on, and at equal N only, it can be compared":
            metric == "fid" and least < FEW_FOR_FID,
        f"fid of {least} images in {dimension} channels: the covariance has not full rank":
            metric == "fid" and least <= dimension,
        f"kid of {least} images: unbiased, but its interval is a guess below {FEW_FOR_KID}":
            metric == "kid" and least < FEW_FOR_KID,
        f"cmmd_v of {least} images is biased upwards: take cmmd_u below {FEW_FOR_V}":
            metric == "cmmd_v" and least < FEW_FOR_V,
    }  # fmt: skip
    return tuple(text for text, holds in found.items() if holds)


def set_scores(features: Matrix, references: References, rng: Rng, subsamples: int = 100) -> list[SetScore]:
    """Return FID and KID of all images, with their intervals and warnings; sets of unequal size are warned of.

    Raises:
        ValueError: as in `subsample_interval`.
    """
    values: dict[SetMetric, float]
    values = {"fid": fid(features, references, allow_unequal=True), "kid": kid_unbiased(features, references)}
    return [_score(metric, value, features, references, rng, subsamples) for metric, value in values.items()]


def cmmd_scores(
    image_embeddings: Matrix, reference_embeddings: References, rng: Rng, subsamples: int = 100
) -> list[SetScore]:
    """Return both CMMDs, with their intervals and warnings.

    Raises:
        ValueError: as in `subsample_interval`.
    """
    sets = image_embeddings, reference_embeddings
    values: dict[SetMetric, float]
    values = {"cmmd_u": cmmd(*sets), "cmmd_v": cmmd(*sets, biased=True)}
    return [_score(metric, value, *sets, rng, subsamples) for metric, value in values.items()]


def _score(
    metric: SetMetric, value: float, features: Matrix, references: References, rng: Rng, subsamples: int
) -> SetScore:
    low, high = subsample_interval(metric, features, references, rng, subsamples)
    sizes = len(features), len(references)
    return SetScore(metric, value, low, high, *sizes, small_sample_warnings(metric, *sizes, features.shape[1]))
