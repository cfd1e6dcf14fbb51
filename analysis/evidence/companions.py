"""What stands beside dominance: other numbers of the same maps, where a target is missing and where none is.

ratio      the largest target's share over the smallest's
mass       the part of the attention that all targets get together
evenness   entropy of the targets' shares, divided by that of equal ones: 1 where all get the same, 0 where one has all
quantile   the 0.9-quantile of a target's own map (the objective of arXiv 2403.06381), of targets, not of images

Conventions: those of `analysis.evidence.tables`; a layer counts as the mean of its heads, and the numbers are means
over the layers. Intervals are over prompts.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from analysis.evidence.figures import band
from analysis.evidence.statistics import DRAWS, SEED, cluster_means
from analysis.evidence.tables import TargetShares, share_ratio
from analysis.figures.style import INK, NEGLECTED, WIDTH, CellFigure, styled

MEASURES = {
    "ratio": "largest / smallest share",
    "evenness": "evenness of the shares",
    "mass": "part of the attention",
    "quantile": "a target's 0.9-quantile",
}


def companion_numbers(shares: TargetShares, draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return the numbers at every step.

    Args:
        shares: of images with detections.
        draws: how many times prompts are drawn for an interval.
        seed: of the draws.

    Returns:
        A row per measure, group ("missing" and "all found"; of the quantile the targets that are missing and those that
        are found) and step; columns value, value_low, value_high, images (or targets), prompts.
    """
    layer = shares.by_layer()
    whole = {"ratio": np.log(share_ratio(layer)).mean(2), "evenness": evenness(layer).mean(2)}
    whole["mass"] = shares.mass().mean(2)
    chance = draws, seed
    missing, prompts, steps = shares.missing, shares.prompts, shares.steps
    tables = [_by_group(name, cells, missing, prompts, steps, chance) for name, cells in whole.items()]
    there = np.zeros_like(shares.lacking)
    there[shares.words["image"], shares.words["slot"]] = True
    each = np.moveaxis(shares.m, -1, 1)[there]  # a row per target of each image: step layer head
    of_words = np.nanmean(each, -1).mean(-1)
    prompts = np.broadcast_to(prompts[:, None], there.shape)[there]
    tables.append(_by_group("quantile", of_words, shares.lacking[there], prompts, steps, chance))
    table = pd.concat(tables, ignore_index=True)
    ratios, ends = table["measure"] == "ratio", ["value", "value_low", "value_high"]
    table.loc[ratios, ends] = np.exp(table.loc[ratios, ends])  # geometric means: one huge ratio is not all of it
    return table


def evenness(shares: Float[np.ndarray, "*cell word"]) -> Float[np.ndarray, "*cell"]:
    """Return the entropy of the shares over its largest possible value; NaN for fewer than two words."""
    counts = (~np.isnan(shares)).sum(-1)
    logs = np.log(np.where(np.isnan(shares) | (shares <= 0), 1.0, shares))
    entropy = -(np.nan_to_num(shares) * logs).sum(-1)
    return np.where(counts > 1, entropy / np.log(np.maximum(counts, 2)), np.nan)


def _by_group(
    name: str, cells: Float[np.ndarray, "row step"], missing: Bool[np.ndarray, " row"], prompts: np.ndarray,
    steps: Sequence[int], chance: tuple[int, int],
) -> pd.DataFrame:  # fmt: skip
    parts = []
    for group, chosen in (("missing", missing), ("all found", ~missing)):
        means = cluster_means(np.where(chosen[:, None], cells, np.nan), prompts, *chance)
        facts = {"measure": name, "group": group, "step": list(steps), **means.columns("value")}
        parts.append(pd.DataFrame(facts | {"images": means.images, "prompts": means.prompts}))
    return pd.concat(parts, ignore_index=True)


@styled
def companion_panels(table: pd.DataFrame, caption: str) -> Figure:
    """Return a panel per measure over the steps.

    Args:
        table: from `companion_numbers`.
        caption: printed below.
    """
    figure = CellFigure(figsize=(WIDTH, 2.2), layout="constrained")
    panels = figure.subplots(1, len(MEASURES))
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for group, colour, line in (("missing", NEGLECTED, "-"), ("all found", INK, "--")):
            part = table[(table["measure"] == measure) & (table["group"] == group)]
            label = {"missing": "missing", "all found": "found"}[group]
            band(axes, part, "step", "value", colour, line, label)
        axes.set(xlabel="step", title=title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel(caption, fontsize=7, color="0.35")
    return figure
