"""Figures from DataFrames: nothing is queried, computed by a model, written or shown here.

Conventions: frames are those of `analysis.tables`; pictures are arrays ``height width channel`` of uint8, by
the sample's number, by method, or by (method, seed). Every figure is returned, in 8 point type, for a page of
6.75 inches, in the style of `analysis.figures.style`.
"""

from collections.abc import Iterable, Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cbook import violin_stats
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.figures.style import (
    HUE,
    INK,
    NEGLECTED,
    OUTCOME_COLOURS,
    TARGET_COLOURS,
    WIDTH,
    CellFigure,
    Picture,
    add_boxes,
    add_frame,
    check_drawable,
    show,
    styled,
)

# Magma from its light end, clear where there is no attention: the picture shows through, and lightness still
# falls steadily from the smallest value to the largest.
_RAMP = np.linspace(0, 1, 256)
GLOW = ListedColormap(np.column_stack([mpl.colormaps["magma_r"](0.05 + 0.8 * _RAMP)[:, :3], 0.92 * _RAMP**0.6]))

KDE_POINTS = 20_000  # of a violin; more of them change nothing that can be seen


@styled
def dominance_violins(
    values: pd.DataFrame,
    missing: pd.DataFrame,
    pictures: Mapping[int, Picture],
    titles: Mapping[int, str],
    caption: str,
) -> Figure:
    """Return one violin per word of the prompt, an image per row and a step per column.

    Bars stand at the smallest, middle and largest value. Targets are bold; an arrow points to one that the image
    does not show. Source: Figure 2 of arXiv 2403.06381.

    Args:
        values: from `tables.violin_values`.
        missing: columns sample and word_idx of the targets that an image does not show.
        pictures: by sample, in the order of the rows.
        titles: of the rows, by sample.
        caption: layer, heads and what was left out, printed below.

    Raises:
        ValueError: there is no picture, or a sample has no values.
    """
    check_drawable(pictures, values)
    steps = sorted(values["step"].unique())
    figure = CellFigure(figsize=(WIDTH, 1.85 * len(pictures) + 0.55), layout="constrained")
    grid = figure.subplots(len(pictures), 1 + len(steps), squeeze=False, width_ratios=[0.62] + [1] * len(steps))
    for row, (sample, picture) in zip(grid, pictures.items(), strict=True):
        show(row[0], picture)
        row[0].set_title(titles[sample], loc="left")
        for axes, step in zip(row[1:], steps, strict=True):
            part = values[(values["sample"] == sample) & (values["step"] == step)]
            _violins(axes, part, set(missing.loc[missing["sample"] == sample, "word_idx"]))
        row[1].set_ylabel("probability")
        for axes in row[2:]:
            axes.tick_params(labelleft=False)
    for axes, step in zip(grid[0, 1:], steps, strict=True):
        axes.set_title(f"attention at step {step}")
    figure.supxlabel(caption, fontsize=7, color="0.35")
    return figure


def _violins(axes: Axes, values: pd.DataFrame, missing: set[int]) -> None:
    words = values[["word_idx", "word", "is_target"]].drop_duplicates("word_idx").sort_values("word_idx")
    points = [values.loc[values["word_idx"] == i, "value"].to_numpy(np.float64) for i in words["word_idx"]]
    parts = axes.violin([_violin(p) for p in points], widths=0.82, showmedians=True, showextrema=True)
    for body in parts["bodies"]:  # pyright: ignore[reportGeneralTypeIssues] # a list, typed as a Collection
        body.set(facecolor=HUE, edgecolor=INK, alpha=1, linewidth=0.4)
    for name in ("cbars", "cmins", "cmaxes", "cmedians"):
        parts[name].set(color=INK, linewidth=0.8)
    axes.set_ylim(0, 1)
    axes.set_xticks(range(1, len(words) + 1), words["word"], rotation=45, ha="right", rotation_mode="anchor")
    for label, target in zip(axes.get_xticklabels(), words["is_target"], strict=True):
        label.set_fontweight("bold" if target else "normal")
    for place, (index, top) in enumerate(zip(words["word_idx"], (p.max() for p in points), strict=True), 1):
        if index in missing:
            foot = min(top + 0.05, 0.7)
            arrow = {"arrowstyle": "-|>", "color": NEGLECTED, "linewidth": 1.4}
            axes.annotate("", (place, foot), (place, foot + 0.28), arrowprops=arrow)


def _violin(points: Float[np.ndarray, " point"]) -> dict[str, object]:
    """Return matplotlib's description of a violin: its shape from some of the points, its bars from all."""
    ordered = np.sort(points)
    drawn = ordered[np.linspace(0, len(ordered) - 1, min(len(ordered), KDE_POINTS)).round().astype(int)]
    (shape,) = violin_stats(drawn, ("GaussianKDE", "scott"), points=200)
    return shape | {"median": np.median(points), "min": ordered[0], "max": ordered[-1]}


@styled
def attention_overlays(maps: pd.DataFrame, pictures: Mapping[str, Picture], caption: str) -> Figure:
    """Return words' maps over one seed's images: a row per method, phase and word, a step per column.

    All the maps share one scale: what is darker got more attention.

    Args:
        maps: rows of `tables.overlay_maps` for one seed of several runs.
        pictures: by method, in the order of the rows.
        caption: layers and heads, printed below.

    Raises:
        ValueError: there is no picture, or a method has no maps.
    """
    check_drawable(pictures, maps, "method")
    steps, keys = sorted(maps["step"].unique()), _rows_of(maps, pictures)
    scale = Normalize(0, max(np.max(m) for m in maps["map"]))
    figure = CellFigure(figsize=(WIDTH, 0.98 * len(keys) + 0.5), layout="constrained")
    grid = figure.subplots(len(keys), 1 + len(steps), squeeze=False)
    for place, (row, (method, phase, (index, word))) in enumerate(zip(grid, keys, strict=True)):
        chosen = (maps["method"] == method) & (maps["phase"] == phase) & (maps["word_idx"] == index)
        by_step = maps[chosen].set_index("step")
        row[0].axis("off")
        if (method, phase) not in [key[:2] for key in keys[:place]]:
            show(row[0], pictures[method])
            row[0].set_title(method if phase == "original" else f"{method}, as edited", loc="left")
        for axes, step in zip(row[1:], steps, strict=True):
            _overlay(axes, pictures[method], by_step.loc[step] if step in by_step.index else None, scale)
            if not place:
                axes.set_title(f"step {step}")
        row[1].set_ylabel(word, fontweight="bold")
    bar = figure.colorbar(ScalarMappable(scale, GLOW), ax=grid, shrink=0.5, aspect=30, pad=0.01)
    bar.set_label("attention probability,\nmean over heads and layers")
    bar.outline.set_linewidth(0.5)
    figure.supxlabel(caption, fontsize=7, color="0.35")
    return figure


def _rows_of(maps: pd.DataFrame, methods: Iterable[str]) -> list[tuple[str, str, tuple[int, str]]]:
    """Return (method, phase, (number, text) of a word) in the order of the figure's rows."""
    rows = []
    for method in methods:
        for phase in ("original", "edited"):
            words = maps.loc[(maps["method"] == method) & (maps["phase"] == phase), ["word_idx", "word"]]
            words = words.drop_duplicates("word_idx").sort_values("word_idx")
            rows += [(method, phase, word) for word in words.itertuples(index=False, name=None)]
    return rows


def _overlay(axes: Axes, picture: Picture, row: pd.Series | None, scale: Normalize) -> None:
    if row is None:
        axes.text(0.5, 0.5, "not edited", ha="center", va="center", color="0.5", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return
    grey = 90 + 0.6 * (picture @ np.array([0.299, 0.587, 0.114]))  # pale, so that the map's colour is seen
    show(axes, np.repeat(grey[..., None], 3, -1).astype(np.uint8))
    extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
    attention = np.asarray(row["map"], np.float32).reshape(row["h"], row["w"])
    axes.imshow(attention, GLOW, norm=scale, extent=extent, interpolation="bicubic")


@styled
def comparison_grid(
    detections: pd.DataFrame,
    outcomes: pd.DataFrame,
    pictures: Mapping[tuple[str, int], Picture],
    columns: int = 8,
) -> Figure:
    """Return every seed's images, the first method's above the second's, with what the detector found.

    Args:
        detections: from `tables.detections`, of two runs; the first in the frame is the upper row.
        outcomes: from `tables.outcomes` of the same runs.
        pictures: by (method, seed).
        columns: seeds beside one another; more of them start a new pair of rows.

    Raises:
        ValueError: there is no picture.
    """
    check_drawable(pictures)
    methods, seeds = list(detections["method"].unique()), list(outcomes["seed"])
    columns = min(columns, len(seeds))
    blocks = -(-len(seeds) // columns)
    colours = dict(zip(detections["target"].unique(), TARGET_COLOURS * len(detections), strict=False))
    height = WIDTH / columns + 0.12 * len(colours)
    figure = CellFigure(figsize=(WIDTH, blocks * (len(methods) * height + 0.42) + 0.25), layout="constrained")
    for block, part in enumerate(np.atleast_1d(figure.subfigures(blocks, 1))):
        grid = part.subplots(len(methods), columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for place, seed in enumerate(seeds[block * columns : (block + 1) * columns]):
            outcome = outcomes.loc[outcomes["seed"] == seed, "outcome"].item()
            grid[0, place].set_title(f"seed {seed}\n{outcome}", color=OUTCOME_COLOURS[outcome])
            for axes, method in zip(grid[:, place], methods, strict=True):
                rows = detections[(detections["method"] == method) & (detections["seed"] == seed)]
                _detected(axes, pictures[method, seed], rows, colours)
        for axes, method in zip(grid[:, 0], methods, strict=True):
            axes.set_ylabel(method)
    keys = [Patch(fill=False, edgecolor=colour, label=target) for target, colour in colours.items()]
    keys.append(Patch(fill=False, edgecolor=NEGLECTED, linewidth=1.6, label="frame: an object is missing"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    return figure


def _detected(axes: Axes, picture: Picture, rows: pd.DataFrame, colours: Mapping[str, str]) -> None:
    show(axes, picture)
    found = rows[rows["found"]]
    add_boxes(axes, found, colours)
    for line, row in enumerate(rows.itertuples(index=False)):
        text = f"{row.target} {row.score:.2f}" if row.found else f"no {row.target}"
        below = {"xytext": (0, -3 - 8 * line), "textcoords": "offset points", "ha": "center", "va": "top"}
        below |= {"fontsize": 6.5, "color": "0.2" if row.found else NEGLECTED}
        axes.annotate(text, (0.5, 0), xycoords="axes fraction", **below)
    if len(found) < len(rows):
        add_frame(axes)
