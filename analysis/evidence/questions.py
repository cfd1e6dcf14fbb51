"""One table per question about dominance: each number with its interval over prompts, and how many images it is of.

Conventions: as in `analysis.evidence.tables` and `analysis.evidence.statistics`. Means of ratios are geometric, so that
their difference is how many times one is the other. Families of p-values are one table's cells.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.evidence.statistics import (
    DRAWS,
    SEED,
    Estimates,
    cluster_auc,
    cluster_difference,
    cluster_means,
)
from analysis.evidence.tables import TargetShares, lacking_share, share_ratio, top_share
from analysis.significance import benjamini_hochberg, holm

GROUPS = ("missing", "all found", "difference")
ALL_LAYERS = "all layers"
OTHER_SEEDS = "other seeds"  # of the baseline itself: what noise drawn anew changes

Cells = Float[np.ndarray, "image *cell"]


def dominance_by_outcome(shares: TargetShares, draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return how dominant the most dominant target is, in images that miss a target and in those that do not.

    Returns:
        A row per measure (share of the most dominant target; ratio of largest to smallest), step, layer and group
        ("missing", "all found", and their "difference": of shares, or how many times as large a ratio); columns value,
        value_low, value_high, images, prompts.

    Raises:
        ValueError: there is no image.
    """
    layer, missing, prompts = shares.by_layer(), shares.missing, shares.prompts
    tables = []
    for measure, cells in (("share", top_share(layer)), ("ratio", np.log(share_ratio(layer)))):
        masks = (missing, ~missing)
        parts = [cluster_means(np.where(m[:, None, None], cells, np.nan), prompts, draws, seed) for m in masks]
        parts.append(cluster_difference(cells, missing, prompts, draws, seed))
        for group, part in zip(GROUPS, parts, strict=True):
            table = by_cell(shares, part, "value").assign(group=group, measure=measure)
            if measure == "ratio":
                ends = ["value", "value_low", "value_high"]
                table[ends] = np.exp(table[ends])
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def auc_by_step(shares: TargetShares, draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return how well the most dominant target's share foretells a missing one, by step and layer.

    Returns:
        A row per step and layer, with auc, within (pairs of images of one prompt), each with _low and _high; p, p_holm,
        p_bh of auc; images, prompts.

    Raises:
        ValueError: there is no image.
    """
    layer = shares.by_layer()
    auc = cluster_auc(top_share(layer), shares.missing, shares.prompts, draws, seed)
    table = by_cell(shares, auc.all, "auc").assign(**auc.within.columns("within"))
    return _corrected(table.assign(p=auc.p.ravel()))


def auc_by_head(
    shares: TargetShares, steps: Sequence[int] | None = None, draws: int = DRAWS, seed: int = SEED
) -> pd.DataFrame:
    """Return how well the most dominant target's share in a head, its mean over steps, foretells a missing one.

    Kinds of prompts fail differently often, and heads may tell them apart without telling anything of an image: the
    p-values are of pairs of images of one prompt, whose words are the same.

    Args:
        shares: of the images.
        steps: some of theirs, chosen without looking at the outcomes; None for all.
        draws: how many times prompts are drawn for an interval.
        seed: of the draws.

    Returns:
        A row per layer and head, with auc and within, each with _low and _high; p, p_holm, p_bh of within; images and
        prompts of auc, within_images and within_prompts.

    Raises:
        ValueError: a step was not recorded, there is no image, or a head gives nothing to all targets of an image.
    """
    chosen = shares.steps if steps is None else tuple(steps)
    if unknown := set(chosen) - set(shares.steps) or not chosen:
        raise ValueError(f"steps must be some of {shares.steps}, at least one, got {chosen} ({unknown})")
    places = [shares.steps.index(step) for step in chosen]
    top = top_share(shares.by_head())[:, places].mean(1)
    there = ~np.isnan(shares.m).all((0, 1, 4))
    auc = cluster_auc(top[:, there], shares.missing, shares.prompts, draws, seed)
    layers, heads = np.nonzero(there)
    table = pd.DataFrame({"layer": np.array(shares.layers, object)[layers], "head": heads, **auc.all.columns("auc")})
    counts = {"images": auc.all.images, "prompts": auc.all.prompts}
    counts |= {"within_images": auc.within.images, "within_prompts": auc.within.prompts}
    return _corrected(table.assign(**auc.within.columns("within"), p=auc.p_within, **counts))


def auc_by_head_and_step(shares: TargetShares, draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return the same at every step: the rows of `auc_by_head` with their step, all of them one family of p-values.

    Raises:
        ValueError: as `auc_by_head`.
    """
    of_steps = [auc_by_head(shares, [step], draws, seed).assign(step=step) for step in shares.steps]
    return _corrected(pd.concat(of_steps, ignore_index=True))


def method_changes(shares: TargetShares, baseline: str = "plain", draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return how each method changes dominance, paired with the baseline's images of the same prompts and seeds.

    Measures: "ratio", how many times the baseline's ratio of largest to smallest share; "missing_share", how much
    higher the share is of the target that the *baseline's* image misses, where it misses some and not all. A target
    that is missing by bad luck gets more in any other image: `OTHER_SEEDS` says how much more in the baseline's own
    images of the prompt's other seeds. A method that only scrambled the image would reach that and no more: "beyond"
    is the method's change less this, image by image; above 0 it is not luck alone.

    Returns:
        A row per method, measure, step and layer (and `ALL_LAYERS`, the mean over them), with value, value_low,
        value_high, images, prompts.

    Raises:
        ValueError: the baseline has no image, or a method none of the same prompts and seeds.
    """
    plain = shares.of(baseline)
    theirs = {method: shares.of(method) for method in dict.fromkeys(shares.images["method"]) if method != baseline}
    tables = []
    redrawn = lacking_share(_other_seeds(plain), plain.lacking) - lacking_share(plain.by_layer(), plain.lacking)
    for method, own in theirs.items():
        first, second = _paired(plain, own, method)
        before, after = plain.by_layer()[first], own.by_layer()[second]
        prompts, lacking = plain.prompts[first], plain.lacking[first]
        change = np.log(share_ratio(after)) - np.log(share_ratio(before))
        ratio = _changes(plain, change, prompts, draws, seed)
        ends = ["value", "value_low", "value_high"]
        ratio[ends] = np.exp(ratio[ends])
        change = lacking_share(after, lacking) - lacking_share(before, lacking)
        measured = {"missing_share": change, "beyond": change - redrawn[first]}
        tables.append(ratio.assign(method=method, measure="ratio"))
        tables += [
            _changes(plain, cells, prompts, draws, seed).assign(method=method, measure=name)
            for name, cells in measured.items()
        ]
    control = _changes(plain, redrawn, plain.prompts, draws, seed)
    return pd.concat([*tables, control.assign(method=OTHER_SEEDS, measure="missing_share")], ignore_index=True)


def _paired(plain: TargetShares, own: TargetShares, method: str) -> tuple[np.ndarray, np.ndarray]:
    keys = ["prompt", "seed"]
    both = plain.images[keys].reset_index().merge(own.images[keys].reset_index(), on=keys, suffixes=("", "_own"))
    if both.empty:
        raise ValueError(f"a method must have prompts and seeds of the baseline's, got none of {method}")
    return both["index"].to_numpy(), both["index_own"].to_numpy()


def _other_seeds(plain: TargetShares) -> Float[np.ndarray, "image step layer word"]:
    """Return each image's mean share over the prompt's other images; NaN where there is none."""
    layer = plain.by_layer()
    _, codes, counts = np.unique(plain.prompts.astype(str), return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), *layer.shape[1:]))
    np.add.at(sums, codes, layer)
    others = (counts[codes] - 1)[:, None, None, None]
    return np.where(others > 0, (sums[codes] - layer) / np.maximum(others, 1), np.nan)


def _changes(shares: TargetShares, change: Cells, prompts: np.ndarray, draws: int, seed: int) -> pd.DataFrame:
    with_mean = np.concatenate([change, change.mean(-1, keepdims=True)], -1)
    layers = (*shares.layers, ALL_LAYERS)
    return by_cell(shares, cluster_means(with_mean, prompts, draws, seed), "value", layers)


def by_cell(shares: TargetShares, cells: Estimates, name: str, layers: Sequence[str] = ()) -> pd.DataFrame:
    """Return a row per step and layer, the layers being the shares' own or those named, with estimates and counts."""
    layers = layers or shares.layers
    places = pd.MultiIndex.from_product([shares.steps, layers], names=["step", "layer"]).to_frame(index=False)
    return places.assign(**cells.columns(name), images=cells.images.ravel(), prompts=cells.prompts.ravel())


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    family = {str(place): p for place, p in enumerate(table["p"])}
    return table.assign(p_holm=list(holm(family).values()), p_bh=list(benjamini_hochberg(family).values()))
