"""Two observers, of whom one saw everything and the other a sample: what both say, back-weighted to everything.

Conventions:
    The detector saw all things, targets or images; a person some of them. `share` is the share of all things that the
    detector found, `yes` the person's share of yes among those it did not find, and among those it found. From these
        the corrected rate         share * yes[1] + (1 - share) * yes[0]
        recall                     share * yes[1] / corrected rate
        the false-positive rate    share * (1 - yes[1]) / (1 - corrected rate)
        Cohen's kappa              (agreement - agreement by chance) / (1 - agreement by chance)
    A table holds shares "person detector *draws", yes (found) before no (not found).
    What a sample leaves open is drawn in two ways. `likely`: for the things that no person saw, from the Beta
    distribution that the answers leave (Jeffreys' prior, so that 50 of 50 is no certainty; the effective number of
    images, after Kish, as targets of one image resemble each other). `resampled`: images again, within their verdicts.
Sources: Tenenbein, JASA 65 (1970), 1350-1361; Cohen, Educ. Psychol. Meas. 20 (1960), 37-46; Kish, Survey Sampling
    (1965).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from analysis.stats import Interval

DRAWS = 2_000
LEVEL = 0.95

Shares = tuple[Float[np.ndarray, "*draws"], Float[np.ndarray, "*draws"]]


@dataclass(frozen=True)
class Sample:
    """Things that a person answered for.

    Attributes:
        found: whether the detector found them.
        yes: whether the person did.
        image: the number of the image that each is in.
        pictures: how many pictures show that image: as many things were seen at once.
        weight: for how many things each stands.
        sizes: how many things there are that the detector did not find, and that it found.
    """

    found: Bool[np.ndarray, " thing"]
    yes: Bool[np.ndarray, " thing"]
    image: Int[np.ndarray, " thing"]
    pictures: Int[np.ndarray, " thing"]
    weight: Float[np.ndarray, " thing"]
    sizes: tuple[int, int]

    @property
    def share(self) -> float:
        """The detector's share of all things."""
        return self.sizes[1] / sum(self.sizes)


def said(sample: Sample) -> Shares:
    """Return the person's share of yes among the things not found, and among those found; 0 where there are none.

    Raises:
        ValueError: there are such things, but the person answered for none.
    """
    shares = []
    for side, size in enumerate(sample.sizes):
        mine = sample.found == bool(side)
        if size and not mine.any():
            missing = "found" if side else "not found"
            raise ValueError(f"answers must cover what was found and what was not, got none of {size:,} {missing}")
        shares.append(np.asarray(np.average(sample.yes[mine], weights=sample.weight[mine]) if size else 0.0))
    return shares[0], shares[1]


def likely(sample: Sample, rng: np.random.Generator, draws: int = DRAWS) -> Shares:
    """Return draws of the same: what is known, and for the rest what it may be."""
    shares = []
    for side, size, mean in zip((False, True), sample.sizes, said(sample), strict=True):
        mine = sample.found == side
        known = min(int(sample.pictures[mine].sum()), size)
        if known == size:
            shares.append(np.full(draws, mean))
            continue
        effective = effective_number(sample.image[mine], sample.weight[mine])
        chance = rng.beta(mean * effective + 0.5, (1 - mean) * effective + 0.5, draws)
        shares.append((known * mean + rng.binomial(size - known, chance)) / size)
    return shares[0], shares[1]


def resampled(
    sample: Sample, verdict: Bool[np.ndarray, " image"], rng: np.random.Generator, draws: int = DRAWS
) -> Shares:
    """Return draws of the same from images drawn again; NaN where none of one kind was drawn.

    Args:
        sample: what the person answered for.
        verdict: by which each image was drawn first; images are drawn again within it.
        rng: where chance comes from.
        draws: how many.
    """
    times = np.zeros((draws, len(verdict)))
    answered = np.isin(np.arange(len(verdict)), sample.image)
    for side in (False, True):
        mine = np.flatnonzero(answered & (verdict == side))
        if len(mine):
            times[:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), draws)
    weights = times[:, sample.image] * sample.weight
    shares = []
    for side, size in enumerate(sample.sizes):
        mine = sample.found == bool(side)
        with np.errstate(invalid="ignore"):
            share = weights[:, mine] @ sample.yes[mine].astype(float) / weights[:, mine].sum(1)
        shares.append(share if size else np.zeros(draws))
    return shares[0], shares[1]


def effective_number(image: Int[np.ndarray, " thing"], weight: Float[np.ndarray, " thing"]) -> float:
    """Return how many equally weighted images tell as much as these things do, after Kish."""
    totals = np.bincount(image, weight)
    return float(totals.sum() ** 2 / (totals**2).sum())


def table_of(share: float, yes: Shares) -> Float[np.ndarray, "2 2 *draws"]:
    """Return the shares of all things on which both say yes, only one does, or neither."""
    missed, found = yes
    return np.array([[share * found, (1 - share) * missed], [share * (1 - found), (1 - share) * (1 - missed)]])


def kappa(table: Float[np.ndarray, "2 2 *draws"]) -> Float[np.ndarray, "*draws"]:
    """Return Cohen's kappa; NaN where both say one and the same thing of everything."""
    chance = (table.sum(0) * table.sum(1)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(chance < 1, (table[0, 0] + table[1, 1] - chance) / (1 - chance), np.nan))


def error_rates(table: Float[np.ndarray, "2 2 *draws"]) -> Shares:
    """Return the detector's recall and its false-positive rate, if the person is right; NaN where there is no case."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(table[0, 0] / table[0].sum(0)), np.asarray(table[1, 0] / table[1].sum(0))


def interval(estimate: float, draws: Float[np.ndarray, " draw"]) -> Interval:
    """Return an estimate with the middle of its draws; a draw that could not be computed says nothing."""
    usable = draws[np.isfinite(draws)]
    if np.isnan(estimate) or not len(usable):
        return Interval(estimate, np.nan, np.nan, LEVEL)
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(min(low, estimate)), float(max(high, estimate)), LEVEL)
