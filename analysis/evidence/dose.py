"""Does dominance cause what is missing? One edit at several strengths, from the same noise.

Dominance and mass are taken of the maps that the network was made to use, and dominance also of those that it computed
itself, each the mean over layers and steps. An edit that moves dominance and hardly the mass (`Balance`) asks about
dominance; one that moves the mass and dominance less (`Boost`) is its control.

Conventions: intervals over prompts, as in `analysis.evidence.statistics`. Strength 0 is the unedited model.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.evidence.figures import band
from analysis.evidence.statistics import DRAWS, SEED, cluster_means
from analysis.evidence.tables import TargetShares, top_share
from analysis.figures.style import INK, NEGLECTED, WIDTH, CellFigure, styled
from analysis.significance import paired_permutation
from analysis.stats import bootstrap_rate

MEASURES = ("used", "own", "mass", "found")
DOSE = ("strength", "prompt", "seed", *MEASURES)


def dose_frame(own: TargetShares, used: TargetShares, strengths: Mapping[str, float]) -> pd.DataFrame:
    """Return the images of methods that are one edit at several strengths, as `dose_means` takes them.

    Args:
        own: of the maps that the network computed.
        used: the same images, of the maps that it was made to use.
        strengths: by method; the unedited model has 0. Images of other methods are left out.

    Returns:
        Columns strength, prompt, seed; used and own (share of the most dominant target), mass (part of the attention
        that goes to all targets); found (all were).

    Raises:
        ValueError: the two are not of the same images.
    """
    keys = ["method", "prompt", "seed"]
    if not own.images[keys].equals(used.images[keys]):
        raise ValueError("own and used must be of the same images, got others")
    frame = own.images.assign(
        strength=own.images["method"].map(dict(strengths)),
        own=top_share(own.by_layer()).mean((1, 2)),
        used=top_share(used.by_layer()).mean((1, 2)),
        mass=used.mass().mean((1, 2)),
    )
    return frame.dropna(subset=["strength"]).reindex(columns=list(DOSE)).reset_index(drop=True)


def dose_means(doses: pd.DataFrame, draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return each measure at each strength, and how it differs from that at strength 0.

    Args:
        doses: from `dose_frame`; every prompt and seed at every strength.
        draws: how many times prompts are drawn for an interval.
        seed: of the draws.

    Returns:
        A row per measure and strength, with value and difference, each with _low and _high; images, prompts.

    Raises:
        ValueError: a prompt and seed lacks a strength, or has it twice, or a value is missing; no strength is 0.
    """
    tables = []
    for measure in MEASURES:
        grid = _dose_grid(doses, measure)
        prompts, values = grid.index.get_level_values("prompt").to_numpy(object), grid.to_numpy(float)
        mean = cluster_means(values, prompts, draws, seed)
        change = cluster_means(values - grid[[0.0]].to_numpy(float), prompts, draws, seed)
        columns = {"strength": grid.columns, **mean.columns("value"), **change.columns("difference")}
        tables.append(pd.DataFrame({"measure": measure, **columns, "images": mean.images, "prompts": mean.prompts}))
    return pd.concat(tables, ignore_index=True)


def dose_trend(doses: pd.DataFrame, seed: int = SEED) -> pd.DataFrame:
    """Return whether each measure rises or falls with the strength, all prompts taken together.

    rho is Spearman's correlation of a prompt's means with the strength (0 where they are all the same), averaged over
    prompts: the statistic of Page's test. p comes from flipping the signs of prompts' correlations, two-sided.

    Source: Page, J. Am. Stat. Assoc. 58 (1963).

    Returns:
        A row per measure, with rho, rho_low, rho_high, p, prompts.

    Raises:
        ValueError: as `dose_means`.
    """
    rows = []
    for measure in MEASURES:
        means = _dose_grid(doses, measure).groupby(level="prompt").mean()
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
    if 0.0 not in grid or len(grid.columns) < 2:
        raise ValueError(f"strengths must be 0 and at least one more, got {list(grid.columns)}")
    return grid.sort_index(axis=0).sort_index(axis=1)


@styled
def dose_response(means: pd.DataFrame, trend: pd.DataFrame, caption: str) -> Figure:
    """Return dominance, the targets' part of the attention and the detection rate over the strength of an edit.

    Args:
        means: from `dose_means`.
        trend: from `dose_trend`.
        caption: printed below.
    """
    figure = CellFigure(figsize=(WIDTH, 2.6), layout="constrained")
    dominance, mass, found = figure.subplots(1, 3)
    _curve(dominance, means, "own", NEGLECTED, "--", "as computed")
    for axes, measure, label in (
        (dominance, "used", "share of the most dominant target"),
        (mass, "mass", "attention to all targets"),
        (found, "found", "all targets found"),
    ):
        _curve(axes, means, measure, INK, "-", "as used")
        test = trend[trend["measure"] == measure].iloc[0]
        p = "p < 0.001" if test["p"] < 0.001 else f"p = {test['p']:.3f}"
        rho = f"rho {test['rho']:.2f} [{test['rho_low']:.2f}, {test['rho_high']:.2f}], {p}"
        axes.set_title(f"{label}\n{rho}".replace("-", "\N{MINUS SIGN}"), loc="left", fontsize=7)
        axes.set_xlabel("strength of the edit")
    dominance.legend(frameon=False)
    figure.supxlabel(caption, fontsize=7, color="0.35")
    return figure


def _curve(axes: Axes, means: pd.DataFrame, measure: str, colour: str, line: str, label: str) -> None:
    band(axes, means[means["measure"] == measure], "strength", "value", colour, line, label, marker="o")
