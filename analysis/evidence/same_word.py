"""Does a word get less attention where its object is missing? The same word of the same prompt, in other noise.

Words differ in how much attention they get and in how easily they are drawn, so that a missing word beside a found one
tells of words. Here a missing word is held against itself, in the prompt's other images where it is found.

Conventions: those of `analysis.evidence.tables`; a layer counts as the mean of its heads. Intervals are over prompts;
the cells of one measure are a family of p-values.
"""

import warnings

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.evidence.figures import layers_of, matrix, short_layer, step_ticks
from analysis.evidence.questions import ALL_LAYERS, by_cell
from analysis.evidence.statistics import DRAWS, SEED, cluster_means, mean_p_values, noun_errors
from analysis.evidence.tables import TargetShares
from analysis.figures.style import WIDTH, CellFigure, styled
from analysis.significance import holm

MEASURES = {"share": "share among the targets, in points", "quantile": "its 0.9-quantile, in per cent"}
Words = Float[np.ndarray, "image step layer word"]


def same_word(shares: TargetShares, draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return how much less a word gets where it is missing than where it is found.

    Args:
        shares: of images of one method, several a prompt.
        draws: how many times prompts are drawn for an interval.
        seed: of the draws.

    Returns:
        A row per measure, step and layer (and `ALL_LAYERS`, the mean over them): "share", the difference of the word's
        share among the targets; "quantile", the difference of the logarithm of its quantile (of a map of nothing: of
        the smallest number that is not); value, value_low, value_high; p and p_holm (over steps and layers; NaN for
        `ALL_LAYERS`); noun_error, the standard error of the value over other nouns, which the interval and p do not
        know; images that miss a word which another image of the prompt shows, prompts.

    Raises:
        ValueError: there is no image.
    """
    tiny = np.finfo(np.float32).tiny
    measured = {"share": shares.by_layer(), "quantile": np.log(np.maximum(shares.quantile(), tiny))}
    tables = []
    for measure, words in measured.items():
        change = _against_itself(words, shares)
        change = np.concatenate([change, change.mean(-1, keepdims=True)], -1)
        table = by_cell(
            shares, cluster_means(change, shares.prompts, draws, seed), "value", (*shares.layers, ALL_LAYERS)
        )
        table = table.assign(p=mean_p_values(change, shares.prompts).ravel(), measure=measure)
        table["noun_error"] = noun_errors(change, _nouns(shares)).ravel()
        single = table["layer"] != ALL_LAYERS
        table.loc[single, "p_holm"] = list(holm({str(row): p for row, p in table.loc[single, "p"].items()}).values())
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _against_itself(words: Words, shares: TargetShares) -> Float[np.ndarray, "image step layer"]:
    """Return the mean over an image's missing words of their value less that where the prompt's images show them."""
    lacking = shares.lacking
    found = _there(shares) & ~lacking
    names, codes = np.unique(shares.prompts.astype(str), return_inverse=True)
    sums, counts = np.zeros((len(names), *words.shape[1:])), np.zeros((len(names), words.shape[-1]))
    np.add.at(sums, codes, np.where(found[:, None, None], words, 0))
    np.add.at(counts, codes, found)
    shown = counts[codes][:, None, None]
    others = sums[codes] / np.where(shown > 0, shown, np.nan)
    change = np.where(lacking[:, None, None], words - others, np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # of images that miss no word
        return np.nanmean(change, -1)


def _nouns(shares: TargetShares) -> Bool[np.ndarray, "image noun"]:
    names, codes = np.unique(shares.words["target"].to_numpy(str), return_inverse=True)
    nouns = np.zeros((len(shares.images), len(names)), bool)
    nouns[shares.words["image"], codes] = True
    return nouns


def _there(shares: TargetShares) -> Bool[np.ndarray, "image word"]:
    there = np.zeros((len(shares.images), shares.m.shape[-1]), bool)
    there[shares.words["image"], shares.words["slot"]] = True
    return there


@styled
def same_word_panels(table: pd.DataFrame, caption: str) -> Figure:
    """Return the difference by layer and step, of shares and of quantiles; * where p is below 0.05 after Holm.

    Args:
        table: from `same_word`.
        caption: printed below.

    Raises:
        ValueError: the table is empty.
    """
    layers = layers_of(table)
    figure = CellFigure(figsize=(WIDTH, 0.24 * len(layers) + 1.1), layout="constrained")
    for axes, (measure, label) in zip(figure.subplots(1, 2, sharey=True), MEASURES.items(), strict=True):
        _differences(axes, table[table["measure"] == measure], layers, measure)
        axes.set(xlabel="step", title=label)
    figure.supxlabel(caption, fontsize=7, color="0.35")
    return figure


def _differences(axes: Axes, table: pd.DataFrame, layers: list[str], measure: str) -> None:
    wide = table.pivot(index="layer", columns="step", values="value").loc[layers]
    values = 100 * (wide.to_numpy(float) if measure == "share" else np.expm1(wide.to_numpy(float)))
    stars = table.pivot(index="layer", columns="step", values="p_holm").loc[layers].to_numpy(float) < 0.05
    most = max(1.0, float(np.nanmax(abs(values)))) if np.isfinite(values).any() else 1.0
    matrix(
        axes, values, [layer if layer == ALL_LAYERS else short_layer(layer) for layer in layers], Normalize(-most, most)
    )
    step_ticks(axes, [int(step) for step in wide.columns])
    for row, column in np.ndindex(values.shape):
        if np.isfinite(values[row, column]):
            text = f"{values[row, column]:+.1f}".replace("-", "\N{MINUS SIGN}") + "*" * bool(stars[row, column])
            colour = "white" if abs(values[row, column]) > 0.7 * most else "0.15"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
