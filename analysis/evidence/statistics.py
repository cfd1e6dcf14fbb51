"""Means, differences and AUCs of many cells at once, with intervals over prompts that have unequally many images.

Conventions:
    Prompts are drawn again with all their images (cluster bootstrap, as `analysis.stats`, whose matrices need equally
    many of each): the intervals hold for other prompts with these seeds. A cell is a step, a layer, a head, or a
    combination; all cells use the same draws, so that they can be compared.
    A value that is NaN does not count, in its cell alone. Intervals are percentiles; draws in which nothing counts are
    left out. An interval has no ends (NaN) where fewer than two prompts count, or where most draws are left out; over
    fewer than about ten prompts it is too narrow.
    AUC: how often an image that misses a target scores higher than one that shows all, ties counting half. `within`
    compares images of one prompt alone, so that prompts that always fail cannot make it.
Sources: Obuchowski, Biometrics 53 (1997), on the error of a clustered AUC.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from analysis.stats import Interval

DRAWS = 2000
SEED = 2403_06381
LEVEL = 0.95

Counts = Float[np.ndarray, "draw prompt"]
Values = Float[np.ndarray, "image *cell"]


@dataclass(frozen=True)
class Estimates:
    """An estimate per cell, with the ends of its interval, and how many images and prompts counted."""

    estimate: Float[np.ndarray, "*cell"]
    low: Float[np.ndarray, "*cell"]
    high: Float[np.ndarray, "*cell"]
    images: Int[np.ndarray, "*cell"]
    prompts: Int[np.ndarray, "*cell"]

    def columns(self, name: str) -> dict[str, np.ndarray]:
        """Return the flat columns name, name_low, name_high of a table."""
        ends = (self.estimate, self.low, self.high)
        return {name + end: cells.ravel() for end, cells in zip(("", "_low", "_high"), ends, strict=True)}

    def one(self) -> Interval:
        """Return the interval of the only cell.

        Raises:
            ValueError: there are more of them.
        """
        if self.estimate.size != 1:
            raise ValueError(f"estimates must have one cell, got {self.estimate.size}")
        return Interval(self.estimate.item(), self.low.item(), self.high.item(), LEVEL)


class Clusters:
    """The prompts of some images, and how often each is in every draw."""

    def __init__(self, prompts: np.ndarray, draws: int = DRAWS, seed: int = SEED):
        """Draw the prompts.

        Raises:
            ValueError: there is no image, or `draws` is below 1.
        """
        if not len(prompts) or draws < 1:
            raise ValueError(f"prompts and draws must be at least one, got {len(prompts)} and {draws}")
        self.names, self.codes = np.unique(np.asarray(prompts, str), return_inverse=True)
        count = len(self.names)
        rng = np.random.default_rng(seed)
        self.counts: Counts = rng.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)

    def sums(self, values: Float[np.ndarray, "image cell"]) -> Float[np.ndarray, "prompt cell"]:
        """Return each prompt's sum, in the order of the images."""
        sums = np.zeros((len(self.names), values.shape[1]))
        np.add.at(sums, self.codes, values)
        return sums

    def drawn(self, sums: Float[np.ndarray, "prompt cell"]) -> Float[np.ndarray, "draw cell"]:
        """Return each draw's sum; not by BLAS, whose last bits depend on the machine's threads."""
        return np.einsum("dp,pc->dc", self.counts, sums)


def cluster_means(values: Values, prompts: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> Estimates:
    """Return the mean over images of every cell, with its interval over prompts.

    Raises:
        ValueError: there is no image, or `draws` is below 1.
    """
    clusters = Clusters(prompts, draws, seed)
    flat = values.reshape(len(values), -1)
    mean, drawn, counted = _means(flat, clusters)
    return _estimates(mean, drawn, counted, values.shape[1:])


def cluster_difference(
    values: Values, group: Bool[np.ndarray, " image"], prompts: np.ndarray, draws: int = DRAWS, seed: int = SEED
) -> Estimates:
    """Return the mean of the images in the group less that of the others, with its interval over prompts.

    Raises:
        ValueError: there is no image, or `draws` is below 1.
    """
    clusters = Clusters(prompts, draws, seed)
    flat = values.reshape(len(values), -1)
    inside, drawn_inside, counted = _means(np.where(group[:, None], flat, np.nan), clusters)
    outside, drawn_outside, others = _means(np.where(group[:, None], np.nan, flat), clusters)
    return _estimates(inside - outside, drawn_inside - drawn_outside, counted + others, values.shape[1:])


def mean_p_values(values: Values, prompts: np.ndarray) -> Float[np.ndarray, "*cell"]:
    """Return the two-sided p-value of every cell's mean being 0: of a t test with the error over prompts.

    Raises:
        ValueError: there is no image.
    """
    clusters = Clusters(prompts, draws=1)
    flat = values.reshape(len(values), -1)
    counts = clusters.sums((~np.isnan(flat)).astype(np.float64))
    return ratio_p_values(clusters.sums(np.nan_to_num(flat)), counts, 0.0).reshape(values.shape[1:])


def noun_errors(values: Values, nouns: Bool[np.ndarray, "image noun"]) -> Float[np.ndarray, "*cell"]:
    """Return the standard error of every cell's mean over other nouns: prompts that share one are not independent.

    The jackknife: all images of one noun are left out at a time. Where nouns do not matter it is too wide, by a factor
    of at most the square root of two, as each image is left out twice. NaN where fewer than three nouns count.

    Args:
        values: of each image; NaN does not count.
        nouns: which of them an image's prompt names, two an image.

    Source: Efron and Stein, Ann. Statist. 9 (1981): a jackknife's error is too large rather than too small.
    """
    flat = values.reshape(len(values), -1)
    there = ~np.isnan(flat)
    sums, counts = np.nan_to_num(flat), there.astype(np.float64)
    without = [_ratio(sums[~noun].sum(0), counts[~noun].sum(0)) for noun in nouns.T]
    counted = np.array([there[noun].any(0) for noun in nouns.T])
    left_out = np.where(counted, np.array(without), np.nan)
    n = counted.sum(0)
    spread = np.nansum((left_out - _ratio(np.nansum(left_out, 0), n)) ** 2, 0)
    return np.sqrt(np.where(n > 2, spread * (n - 1) / np.maximum(n, 1), np.nan)).reshape(values.shape[1:])


def ratio_p_values(
    sums: Float[np.ndarray, "prompt cell"], counts: Float[np.ndarray, "prompt cell"], null: float
) -> Float[np.ndarray, " cell"]:
    """Return the two-sided p-value of the ratio of two sums over prompts being `null`; 1 where nothing is to be told.

    Source: the linearised error of a ratio estimator, Cochran, Sampling Techniques (1977), 6.4.
    """
    prompts, total = (counts > 0).sum(0), counts.sum(0)
    ratio = _ratio(sums.sum(0), total)
    pull = np.where(counts > 0, sums - np.nan_to_num(ratio) * counts, 0)
    error = np.sqrt((pull**2).sum(0) * prompts / np.maximum(prompts - 1, 1)) / np.maximum(total, 1)
    there = (prompts > 1) & (error > 0)
    statistic = (np.nan_to_num(ratio) - null) / np.where(there, error, 1)
    return np.where(there, 2 * stats.t.sf(abs(statistic), np.maximum(prompts - 1, 1)), 1.0)


def _means(flat: Float[np.ndarray, "image cell"], clusters: Clusters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean, that of every draw, and how many images of each prompt count."""
    counts = clusters.sums((~np.isnan(flat)).astype(np.float64))
    sums = clusters.sums(np.nan_to_num(flat))
    return _ratio(sums.sum(0), counts.sum(0)), _ratio(clusters.drawn(sums), clusters.drawn(counts)), counts


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


def _estimates(
    estimate: Float[np.ndarray, " cell"],
    drawn: Float[np.ndarray, "draw cell"],
    counted: Float[np.ndarray, "prompt cell"],
    shape: tuple[int, ...],
) -> Estimates:
    ends = np.full((2, len(estimate)), np.nan)
    there = ~np.isnan(drawn)
    there[:, (counted > 0).sum(0) < 2] = False
    whole = there.all(0)
    levels = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    if whole.any():
        ends[:, whole] = np.quantile(drawn[:, whole], levels, axis=0)
    for cell in np.flatnonzero(~whole & (there.mean(0) > 0.5)):
        ends[:, cell] = np.quantile(drawn[there[:, cell], cell], levels)
    images, prompts = counted.sum(0).astype(int), (counted > 0).sum(0)
    return Estimates(*(cells.reshape(shape) for cells in (estimate, ends[0], ends[1], images, prompts)))


@dataclass(frozen=True)
class Auc:
    """AUC of every cell: over all pairs of images, and over pairs of images of one prompt.

    Attributes:
        all: with its interval; NaN where no image misses a target, or all do.
        within: likewise, of prompts that have images of both kinds.
        p: two-sided, of AUC = 0.5 over all pairs; 1 where there is no error to measure it by.
        p_within: likewise, over pairs of images of one prompt.
    """

    all: Estimates
    within: Estimates
    p: Float[np.ndarray, "*cell"]
    p_within: Float[np.ndarray, "*cell"]


def cluster_auc(
    scores: Values, missing: Bool[np.ndarray, " image"], prompts: np.ndarray, draws: int = DRAWS, seed: int = SEED
) -> Auc:
    """Return how well a score tells images that miss a target from the others, with intervals over prompts.

    The p-value is of a t test with the clustered error of the AUC, with one degree of freedom less than
    there are prompts.

    Args:
        scores: the higher, the more is a target expected to be missing.
        missing: of each image.
        prompts: of each image.
        draws: how many times prompts are drawn.
        seed: of the draws.

    Raises:
        ValueError: there is no image, `draws` is below 1, or a score is NaN.
    """
    flat = scores.reshape(len(scores), -1)
    if np.isnan(flat).any():
        raise ValueError(f"scores must be whole, got {int(np.isnan(flat).sum())} NaN of {flat.size}")
    clusters = Clusters(prompts, draws, seed)
    wins = pair_wins(flat, missing, clusters.codes, len(clusters.names))
    ones = np.ones((len(missing), 1))
    missed, shown = (clusters.sums(ones * kind[:, None])[:, 0] for kind in (missing, ~missing))
    # Halves and whole numbers: these sums are exact in any order
    drawn = np.stack([((clusters.counts @ cell) * clusters.counts).sum(1) for cell in wins], 1)
    pairs = (clusters.counts @ missed) * (clusters.counts @ shown)
    auc = _ratio(wins.sum((1, 2)), np.array(missed.sum() * shown.sum()))
    counted = np.repeat((missed + shown)[:, None], flat.shape[1], 1)
    overall = _estimates(auc, _ratio(drawn, pairs[:, None]), counted, scores.shape[1:])
    own, mixed = np.diagonal(wins, axis1=1, axis2=2).T, missed * shown
    inside = _ratio(own.sum(0), np.array(mixed.sum()))
    drawn = _ratio(clusters.drawn(own), (clusters.counts @ mixed)[:, None])
    within = _estimates(inside, drawn, counted * (mixed > 0)[:, None], scores.shape[1:])
    p = _p_values(auc, wins, missed, shown), ratio_p_values(own, np.repeat(mixed[:, None], own.shape[1], 1), 0.5)
    return Auc(overall, within, *(one.reshape(scores.shape[1:]) for one in p))


def pair_wins(
    scores: Float[np.ndarray, "image cell"],
    missing: Bool[np.ndarray, " image"],
    codes: Int[np.ndarray, " image"],
    count: int,
) -> Float[np.ndarray, "cell prompt prompt_"]:
    """Return how many pairs (image that misses a target, image that shows all) of two prompts the first wins.

    A tie is half a win. Rows are the prompts of the first images, columns those of the second.
    """
    wins = np.zeros((scores.shape[1], count, count))
    owners, lacking = codes[missing], scores[missing]
    for prompt in np.unique(codes[~missing]):
        others = np.sort(scores[~missing & (codes == prompt)], 0)
        for cell in range(scores.shape[1]):
            below, upto = (np.searchsorted(others[:, cell], lacking[:, cell], side) for side in ("left", "right"))
            wins[cell, :, prompt] = np.bincount(owners, (below + upto) / 2, count)
    return wins


def _p_values(
    auc: Float[np.ndarray, " cell"],
    wins: Float[np.ndarray, "cell prompt prompt_"],
    missed: Float[np.ndarray, " prompt"],
    shown: Float[np.ndarray, " prompt"],
) -> Float[np.ndarray, " cell"]:
    every, others, prompts = missed.sum(), shown.sum(), len(missed)
    if not every or not others or prompts < 2:
        return np.ones(len(auc))
    pull = (wins.sum(2) / others - auc[:, None] * missed) / every + (
        wins.sum(1) / every - auc[:, None] * shown
    ) / others
    error = np.sqrt((pull**2).sum(1) * prompts / (prompts - 1))
    statistic = (auc - 0.5) / np.where(error > 0, error, 1)
    return np.where(error > 0, 2 * stats.t.sf(abs(statistic), prompts - 1), 1.0)
