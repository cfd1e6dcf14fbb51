"""One table per question about dominance: each number with its interval over prompts, and how many images it is of.

Conventions: as in `analysis.evidence.tables` and `analysis.evidence.statistics`. Means of ratios are geometric, so that
their difference is how many times one is the other. Families of p-values are one table's cells.
"""

from collections.abc import Mapping, Sequence

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
from analysis.evidence.tables import TargetShares, lacking_is_smaller, lacking_share, share_ratio, top_share
from analysis.significance import benjamini_hochberg, holm, paired_permutation
from analysis.stats import bootstrap_rate

GROUPS = ("missing", "all found", "difference")
ALL_LAYERS = "all layers"
OTHER_SEEDS = "other seeds"  # of the baseline itself: what a method that does nothing seems to change
DOSE = ("strength", "prompt", "seed", "dominance", "found")

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
            table = _by_cell(shares, part, "value").assign(group=group, measure=measure)
            if measure == "ratio":
                ends = ["value", "value_low", "value_high"]
                table[ends] = np.exp(table[ends])
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def auc_by_step(shares: TargetShares, draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return how well the most dominant target's share foretells a missing one, by step and layer.

    Returns:
        A row per step and layer, with auc, within (pairs of images of one prompt), smaller (how often a missing target
        has the smaller share than a found one of its image; 0.5 by chance), each with _low and _high; p, p_holm, p_bh
        of auc; images, prompts; smaller_images, smaller_prompts.

    Raises:
        ValueError: there is no image.
    """
    layer = shares.by_layer()
    auc = cluster_auc(top_share(layer), shares.missing, shares.prompts, draws, seed)
    smaller = cluster_means(lacking_is_smaller(layer, shares.lacking), shares.prompts, draws, seed)
    table = _by_cell(shares, auc.all, "auc").assign(**auc.within.columns("within"), **smaller.columns("smaller"))
    counts = {"smaller_images": smaller.images.ravel(), "smaller_prompts": smaller.prompts.ravel()}
    return _corrected(table.assign(**counts, p=auc.p.ravel()))


def auc_by_head(
    shares: TargetShares, steps: Sequence[int] | None = None, draws: int = DRAWS, seed: int = SEED
) -> pd.DataFrame:
    """Return how well the most dominant target's share in a head, its mean over steps, foretells a missing one.

    Args:
        shares: of the images.
        steps: some of theirs, chosen without looking at the outcomes; None for all.
        draws: how many times prompts are drawn for an interval.
        seed: of the draws.

    Returns:
        A row per layer and head, with auc and within, each with _low and _high; p, p_holm, p_bh; images, prompts.

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
    table = table.assign(**auc.within.columns("within"), p=auc.p, images=auc.all.images, prompts=auc.all.prompts)
    return _corrected(table)


def method_changes(shares: TargetShares, baseline: str = "plain", draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return how each method changes dominance, paired with the baseline's images of the same prompts and seeds.

    Measures: "ratio", how many times the baseline's ratio of largest to smallest share; "missing_share", how much
    higher the share is of the target that the *baseline's* image misses, where it misses some and not all. A target
    that is missing by bad luck gets more in any other image: `OTHER_SEEDS` says how much more in the baseline's own
    images of the prompt's other seeds, and only what goes beyond that is the method's doing.

    Returns:
        A row per method, measure, step and layer (and `ALL_LAYERS`, the mean over them), with value, value_low,
        value_high, images, prompts.

    Raises:
        ValueError: the baseline has no image, or a method none of the same prompts and seeds.
    """
    plain = shares.of(baseline)
    theirs = {method: shares.of(method) for method in dict.fromkeys(shares.images["method"]) if method != baseline}
    tables = []
    for method, own in theirs.items():
        first, second = _paired(plain, own, method)
        before, after = plain.by_layer()[first], own.by_layer()[second]
        prompts, lacking = plain.prompts[first], plain.lacking[first]
        change = np.log(share_ratio(after)) - np.log(share_ratio(before))
        ratio = _changes(plain, change, prompts, draws, seed)
        ends = ["value", "value_low", "value_high"]
        ratio[ends] = np.exp(ratio[ends])
        change = lacking_share(after, lacking) - lacking_share(before, lacking)
        missing = _changes(plain, change, prompts, draws, seed)
        tables += [ratio.assign(method=method, measure="ratio"), missing.assign(method=method, measure="missing_share")]
    change = lacking_share(_other_seeds(plain), plain.lacking) - lacking_share(plain.by_layer(), plain.lacking)
    control = _changes(plain, change, plain.prompts, draws, seed)
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
    return _by_cell(shares, cluster_means(with_mean, prompts, draws, seed), "value", layers)


def dose_frame(shares: TargetShares, strengths: Mapping[str, float], step: int) -> pd.DataFrame:
    """Return the images of methods that are one edit at several strengths, as `dose_means` takes them.

    Args:
        shares: of the images.
        strengths: by method; the baseline has 0.
        step: at which dominance, the share of the most dominant target averaged over the layers, is taken.

    Raises:
        ValueError: the step was not recorded.
    """
    if step not in shares.steps:
        raise ValueError(f"step must be one of {shares.steps}, got {step}")
    top = top_share(shares.by_layer())[:, shares.steps.index(step)].mean(1)
    frame = shares.images.assign(strength=shares.images["method"].map(dict(strengths)), dominance=top)
    return frame.dropna(subset=["strength"]).reindex(columns=list(DOSE)).reset_index(drop=True)


def dose_means(doses: pd.DataFrame, draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return dominance and detection rate at each strength, and how they differ from the lowest one's.

    Args:
        doses: columns strength, prompt, seed, dominance, found; every prompt and seed at every strength.
        draws: how many times prompts are drawn for an interval.
        seed: of the draws.

    Returns:
        A row per measure ("dominance", "found") and strength, with value and difference, each with _low and _high;
        images, prompts.

    Raises:
        ValueError: a prompt and seed lacks a strength, or has it twice, or a value is missing.
    """
    tables = []
    for measure in ("dominance", "found"):
        grid = _dose_grid(doses, measure)
        prompts, values = grid.index.get_level_values("prompt").to_numpy(object), grid.to_numpy(float)
        mean = cluster_means(values, prompts, draws, seed)
        change = cluster_means(values - values[:, :1], prompts, draws, seed)
        columns = {"strength": grid.columns, **mean.columns("value"), **change.columns("difference")}
        tables.append(pd.DataFrame({"measure": measure, **columns, "images": mean.images, "prompts": mean.prompts}))
    return pd.concat(tables, ignore_index=True)


def dose_trend(doses: pd.DataFrame, seed: int = SEED) -> pd.DataFrame:
    """Return whether dominance and detection rise or fall with the strength, all prompts taken together.

    rho is Spearman's correlation of a prompt's means with the strength (0 where they are all the same), averaged over
    prompts: the statistic of Page's test. p comes from flipping the signs of prompts' correlations, two-sided.

    Source: Page, J. Am. Stat. Assoc. 58 (1963).

    Returns:
        A row per measure ("dominance", "found"), with rho, rho_low, rho_high, p, prompts.

    Raises:
        ValueError: there are fewer than two strengths, or as in `dose_means`.
    """
    rows = []
    for measure in ("dominance", "found"):
        means = _dose_grid(doses, measure).groupby(level="prompt").mean()
        if len(means.columns) < 2:
            raise ValueError(f"strengths must be at least 2, got {list(means.columns)}")
        rho = np.array([_spearman(row) for row in np.round(means.to_numpy(), 9)])[:, None]
        interval = bootstrap_rate(rho, np.random.default_rng(seed))
        p = paired_permutation(rho, np.zeros_like(rho), np.random.default_rng(seed)).p
        ends = {"rho": interval.estimate, "rho_low": interval.low, "rho_high": interval.high}
        rows.append({"measure": measure, **ends, "p": p, "prompts": len(rho)})
    return pd.DataFrame(rows)


def _spearman(means: Float[np.ndarray, " strength"]) -> float:
    ranks = pd.Series(means).rank().to_numpy()
    place = np.arange(len(ranks)) - (len(ranks) - 1) / 2
    spread = np.sqrt(((ranks - ranks.mean()) ** 2).sum() * (place**2).sum())
    return float((ranks - ranks.mean()) @ place / spread) if spread else 0.0


def _dose_grid(doses: pd.DataFrame, measure: str) -> pd.DataFrame:
    if doses.empty or doses.duplicated(["strength", "prompt", "seed"]).any():
        raise ValueError("doses must have one row per strength, prompt and seed, at least one")
    grid = doses.astype({measure: float}).pivot(index=["prompt", "seed"], columns="strength", values=measure)
    if lacking := int(grid.isna().any(axis=1).sum()):
        raise ValueError(f"every prompt and seed must have every strength, got {lacking} of {len(grid)} that lack some")
    return grid.sort_index(axis=0).sort_index(axis=1)


def _by_cell(shares: TargetShares, cells: Estimates, name: str, layers: Sequence[str] = ()) -> pd.DataFrame:
    layers = layers or shares.layers
    places = pd.MultiIndex.from_product([shares.steps, layers], names=["step", "layer"]).to_frame(index=False)
    return places.assign(**cells.columns(name), images=cells.images.ravel(), prompts=cells.prompts.ravel())


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    family = {str(place): p for place, p in enumerate(table["p"])}
    return table.assign(p_holm=list(holm(family).values()), p_bh=list(benjamini_hochberg(family).values()))
