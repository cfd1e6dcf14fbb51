"""Does dominance tell beforehand that an object will be missing? Chosen on some prompts, judged on others.

Conventions:
    A measure (of `analysis.evidence.tables`) has a value per image, step and layer. That higher values go with missing
    objects is what is asked, not which direction fits better.
    The best of many cells is too good on the images that it was chosen by. So prompts are dealt into parts; the cell
    is chosen, and the probability fitted, without the part that it is judged on. No image is predicted by its own
    prompt.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.evidence.statistics import DRAWS, SEED, cluster_auc, cluster_means, pair_wins
from analysis.stats import Interval

RIDGE = 1e-3  # on the slope of the standardised measure: keeps it finite where the kinds do not overlap
ROUNDS = 100


@dataclass(frozen=True)
class Logistic:
    """The probability of a missing object: 1 / (1 + exp(-(intercept + slope * (x - middle) / spread)))."""

    intercept: float
    slope: float
    middle: float
    spread: float

    def predicted(self, x: Float[np.ndarray, " image"]) -> Float[np.ndarray, " image"]:
        """Return the probability at each value."""
        return 1 / (1 + np.exp(-(self.intercept + self.slope * (x - self.middle) / self.spread)))


@dataclass(frozen=True)
class Prediction:
    """What dominance foretells of images whose prompts it was not fitted to.

    Attributes:
        choices: a row per part: part, step, layer (chosen without it), tuned (AUC where chosen), auc, auc_low,
            auc_high, within (of images of one prompt), images, missing, prompts: all of the part.
        images: a row per image: prompt, missing, part, measure (in the cell chosen for the part), predicted, base (the
            share of missing where fitted).
        brier: mean squared error of `predicted`.
        gain: by how much it is below that of `base`; above 0, dominance foretells something.
    """

    choices: pd.DataFrame
    images: pd.DataFrame
    brier: Interval
    gain: Interval


def fit_logistic(x: Float[np.ndarray, " image"], missing: Bool[np.ndarray, " image"]) -> Logistic:
    """Return the logistic curve of largest likelihood, its slope held a little (`RIDGE`), by Newton's method.

    Raises:
        ValueError: the images are all of one kind, or a value is not finite.
    """
    if missing.all() or not missing.any():
        raise ValueError(f"images must be of both kinds, got {int(missing.sum())} of {len(missing)} that miss a target")
    if not np.isfinite(x).all():
        raise ValueError(f"values must be finite, got {int((~np.isfinite(x)).sum())} others of {len(x)}")
    middle, spread = float(x.mean()), float(x.std()) or 1.0
    design = np.stack([np.ones(len(x)), (x - middle) / spread], 1)
    held = np.diag([0.0, RIDGE * len(x)])
    weights = np.array([np.log(missing.mean() / (1 - missing.mean())), 0.0])
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (missing - p) - held @ weights
        step = np.linalg.solve(design.T @ (design * (p * (1 - p))[:, None]) + held, gradient)
        weights = weights + step
        if abs(step).max() < 1e-12:
            break
    return Logistic(float(weights[0]), float(weights[1]), middle, spread)


def prompt_parts(prompts: np.ndarray, parts: int = 2, seed: int = SEED) -> Int[np.ndarray, " image"]:
    """Return the part of each image: whole prompts, equally many in each, give or take one.

    Raises:
        ValueError: there are fewer than two parts, or fewer prompts than parts.
    """
    names, codes = np.unique(np.asarray(prompts, str), return_inverse=True)
    if not 2 <= parts <= len(names):
        raise ValueError(f"parts must be from 2 to the number of prompts, {len(names)}, got {parts}")
    order = np.random.default_rng(seed).permutation(len(names))
    return (np.argsort(order) % parts)[codes]


def foretold(
    measure: Float[np.ndarray, "image step layer"],
    missing: Bool[np.ndarray, " image"],
    prompts: np.ndarray,
    steps: tuple[int, ...],
    layers: tuple[str, ...],
    parts: int = 2,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Prediction:
    """Choose step and layer and fit the probability on all parts but one, and judge both on that one; for each part.

    Args:
        measure: of dominance; the logarithm of the ratio suits the logistic curve.
        missing: which images miss a target.
        prompts: of each image.
        steps: names of the measure's steps.
        layers: names of its layers.
        parts: 2 for halves.
        draws: how many times prompts are drawn for an interval.
        seed: of parts and draws.

    Raises:
        ValueError: images outside of a part are all of one kind, or as in `prompt_parts` and `fit_logistic`.
    """
    part = prompt_parts(prompts, parts, seed)
    choices, (chosen, predicted, base) = [], np.zeros((3, len(missing)))
    flat = measure.reshape(len(measure), -1)
    for number in range(parts):
        judged, fitted = part == number, part != number
        tuned = _auc(flat[fitted], missing[fitted])
        cell = int(np.argmax(tuned))
        predicted[judged] = fit_logistic(flat[fitted, cell], missing[fitted]).predicted(flat[judged, cell])
        chosen[judged], base[judged] = flat[judged, cell], missing[fitted].mean()
        auc = cluster_auc(flat[judged][:, [cell]], missing[judged], prompts[judged], draws, seed)
        step, layer = divmod(cell, len(layers))
        choices.append({
            "part": number, "step": steps[step], "layer": layers[layer], "tuned": tuned[cell],
            **{name: column[0] for name, column in auc.all.columns("auc").items()},
            "within": auc.within.estimate[0], "images": int(judged.sum()), "missing": int(missing[judged].sum()),
            "prompts": len(set(prompts[judged])),
        })  # fmt: skip
    columns = {"prompt": prompts, "missing": missing, "part": part, "measure": chosen}
    images = pd.DataFrame(columns | {"predicted": predicted, "base": base})
    error, flat_error = (predicted - missing) ** 2, (base - missing) ** 2
    brier, gain = (cluster_means(e[:, None], prompts, draws, seed).one() for e in (error, flat_error - error))
    return Prediction(pd.DataFrame(choices), images, brier, gain)


def _auc(flat: Float[np.ndarray, "image cell"], missing: Bool[np.ndarray, " image"]) -> Float[np.ndarray, " cell"]:
    pairs = int(missing.sum()) * int((~missing).sum())
    if not pairs:
        raise ValueError(f"images must be of both kinds in every part, got {int(missing.sum())} of {len(missing)}")
    return pair_wins(flat, missing, np.zeros(len(missing), int), 1)[:, 0, 0] / pairs


def roc(images: pd.DataFrame) -> pd.DataFrame:
    """Return the ROC curve of each part: what would be foretold at every threshold of the measure.

    Args:
        images: of a `Prediction`.

    Returns:
        Columns part, false_alarms (share of the images that show all), hits (share of those that miss a target), from
        (0, 0) to (1, 1); images of one value come together. NaN where a part has images of one kind only.
    """
    curves = []
    for part, rows in images.groupby("part"):
        counts = rows.groupby("measure")["missing"].agg(["sum", "size"]).sort_index(ascending=False)
        hits = np.concatenate([[0], counts["sum"].to_numpy(float).cumsum()])
        alarms = np.concatenate([[0], (counts["size"] - counts["sum"]).to_numpy(float).cumsum()])
        ends = [one[-1] or np.nan for one in (alarms, hits)]
        curves.append(pd.DataFrame({"part": part, "false_alarms": alarms / ends[0], "hits": hits / ends[1]}))
    return pd.concat(curves, ignore_index=True)


def reliability(images: pd.DataFrame, bins: int = 5, draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return how often an object is missing where it was foretold to be, in bins of equally many images.

    Args:
        images: of a `Prediction`.
        bins: how many.
        draws: how many times prompts are drawn for an interval.
        seed: of the draws.

    Returns:
        Columns predicted (mean of the bin), observed, observed_low, observed_high, images, prompts.

    Raises:
        ValueError: there are fewer images than bins, or no bin.
    """
    if not 1 <= bins <= len(images):
        raise ValueError(f"bins must be from 1 to the number of images, {len(images)}, got {bins}")
    ranks = np.empty(len(images), int)
    ranks[np.argsort(images["predicted"].to_numpy(), kind="stable")] = np.arange(len(images))
    binned = np.equal.outer(ranks * bins // len(images), np.arange(bins))
    missing, predicted = images["missing"].to_numpy(float), images["predicted"].to_numpy()
    observed = cluster_means(np.where(binned, missing[:, None], np.nan), images["prompt"].to_numpy(object), draws, seed)
    middles = [predicted[inside].mean() for inside in binned.T]
    counts = {"images": observed.images, "prompts": observed.prompts}
    return pd.DataFrame({"predicted": middles, **observed.columns("observed"), **counts})
