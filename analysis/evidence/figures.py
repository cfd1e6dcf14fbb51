"""A figure per question about dominance: what the tables of `analysis.evidence` say, and nothing else.

Conventions: as in `analysis.figures.style`: 8 point type, a page of 6.75 inches, Okabe and Ito's colours, nothing shown
or written. Bands and bars are the tables' intervals. A caption says what the images are of, and of which world.
"""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.evidence.prediction import Prediction, roc
from analysis.evidence.questions import ALL_LAYERS, OTHER_SEEDS
from analysis.figures.style import INK, NEGLECTED, TARGET_COLOURS, WIDTH, CellFigure, styled

GREY = "#56606b"
AUC_SCALE = Normalize(0, 1)
AUC_COLOURS = mpl.colormaps["PuOr_r"]  # white at 0.5, chance; told apart by colour-blind readers
LINES = ("-", "--", "-.", ":")


@styled
def dominance_over_steps(table: pd.DataFrame, caption: str, measure: str = "share") -> Figure:
    """Return a panel per layer: how dominant the most dominant target is, where one is missing and where none is.

    Args:
        table: from `questions.dominance_by_outcome`.
        caption: printed below.
        measure: "share" or "ratio".

    Raises:
        ValueError: the table has no such measure.
    """
    table = table.loc[table["measure"] == measure]
    figure, panels = _panels(layers_of(table))
    for layer, axes in panels.items():
        for group, colour, line in (("missing", NEGLECTED, "-"), ("all found", INK, "--")):
            part = table[(table["layer"] == layer) & (table["group"] == group)]
            band(axes, part, "step", "value", colour, line, f"{group} ({part['images'].max()} images)")
    label = {"share": "share of the most\ndominant target", "ratio": "largest / smallest\nshare"}[measure]
    _label_left(panels, label)
    return _finished(figure, next(iter(panels.values())), caption)


@styled
def prediction_panels(table: pd.DataFrame, prediction: Prediction, bins: pd.DataFrame, caption: str) -> Figure:
    """Return AUC by layer and step; the ROC curves of the two cells that were chosen; foretold against observed.

    Args:
        table: from `questions.auc_by_step`.
        prediction: from `prediction.foretold`.
        bins: from `prediction.reliability`.
        caption: printed below.

    Raises:
        ValueError: the table is empty.
    """
    layers = layers_of(table)
    figure = CellFigure(figsize=(WIDTH, 2.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.35, 1, 1])
    grid = table.pivot(index="layer", columns="step", values="auc").loc[layers]
    matrix(left, grid.to_numpy(float), [short_layer(layer) for layer in layers])
    steps = list(grid.columns)
    step_ticks(left, steps)
    for choice in prediction.choices.itertuples(index=False):
        left.plot(steps.index(choice.step), layers.index(choice.layer), "s", mfc="none", mec="black", ms=6, mew=1)
        left.annotate(str(choice.part + 1), (steps.index(choice.step), layers.index(choice.layer)), fontsize=6,
                      xytext=(4, 3), textcoords="offset points")  # fmt: skip
    left.set(xlabel="step", title="AUC of dominance")
    bar = figure.colorbar(left.images[0], ax=left, location="bottom", shrink=0.8, aspect=30, pad=0.02)
    bar.outline.set_linewidth(0.5)
    _roc(middle, prediction)
    _reliability(right, prediction, bins)
    figure.supxlabel(caption, fontsize=7, color="0.35")
    return figure


def _roc(axes: Axes, prediction: Prediction) -> None:
    """Draw the curve of each part's images, as foretold by what the other part chose and fitted."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    curves, said = roc(prediction.images), ["AUC where it was not chosen"]
    for place, choice in enumerate(prediction.choices.itertuples(index=False)):
        rows = curves[curves["part"] == choice.part]
        look = {"color": TARGET_COLOURS[place % 8], "linestyle": LINES[place % 4], "linewidth": 1.2}
        axes.plot(rows["false_alarms"], rows["hits"], **look)
        name = ("solid", "dashed", "dash-dotted", "dotted")[place % 4]
        said.append(f"{choice.part + 1}, {name}: {choice.auc:.2f} [{choice.auc_low:.2f}, {choice.auc_high:.2f}]")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="false alarms", ylabel="hits")
    axes.set_title("\n".join(said), fontsize=7, loc="left")


def _reliability(axes: Axes, prediction: Prediction, bins: pd.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    middle = bins["observed"].to_numpy()
    ends = np.abs(bins[["observed_low", "observed_high"]].to_numpy().T - middle)
    axes.errorbar(bins["predicted"], middle, ends, fmt="o", color=INK, markersize=3.5, linewidth=1)
    top = min(1, 1.15 * max(bins["observed_high"].max(), bins["predicted"].max()))
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="foretold", ylabel="observed")
    gain = prediction.gain
    said = f"images that miss one\nBrier gain {gain.estimate:.3f}\n[{gain.low:.3f}, {gain.high:.3f}]"
    axes.set_title(said.replace("-", "\N{MINUS SIGN}"), fontsize=7, loc="left")


@styled
def head_matrix(table: pd.DataFrame, caption: str) -> Figure:
    """Return AUC by layer and head, of all pairs of images and of those of one prompt.

    Of the latter ** marks where p is below 0.05 after Holm, * where it is after Benjamini and Hochberg.

    Args:
        table: from `questions.auc_by_head`.
        caption: printed below.

    Raises:
        ValueError: the table is empty.
    """
    layers = layers_of(table)
    figure = CellFigure(figsize=(WIDTH, 0.24 * len(layers) + 1.0), layout="constrained")
    pair = figure.subplots(1, 2, sharey=True)
    _heads(pair[0], table.assign(mark=""), layers, "auc", "all pairs of images")
    marks = np.where(table["p_holm"] < 0.05, "**", np.where(table["p_bh"] < 0.05, "*", ""))
    _heads(pair[1], table.assign(mark=marks), layers, "within", "pairs of images of one prompt")
    bar = figure.colorbar(pair[1].images[0], ax=pair, aspect=15, pad=0.01)
    bar.outline.set_linewidth(0.5)
    bar.set_label("AUC")
    figure.supxlabel(caption, fontsize=7, color="0.35")
    return figure


def _heads(axes: Axes, table: pd.DataFrame, layers: Sequence[str], measure: str, title: str) -> None:
    grid = table.pivot(index="layer", columns="head", values=measure).loc[layers]
    marks = table.pivot(index="layer", columns="head", values="mark").loc[layers]
    count = grid.shape[1]
    matrix(axes, grid.to_numpy(float), [short_layer(layer) for layer in layers])
    for row, head in np.ndindex(grid.shape):
        value = grid.iat[row, head]
        text = f"{value:.2f}{marks.iat[row, head]}" if value == value else "\N{EN DASH}"
        colour = "white" if value == value and abs(value - 0.5) > 0.35 else "0.15" if value == value else "0.6"
        axes.text(head, row, text, ha="center", va="center", fontsize=7 if count < 9 else 4, color=colour)
    axes.set_xticks(range(count), [f"head {head}" if count < 6 else str(head) for head in grid.columns])
    axes.set_title(title)


@styled
def method_change(table: pd.DataFrame, caption: str, layer: str = ALL_LAYERS) -> Figure:
    """Return how each method changes the dominance ratio and the missing target's share, by step.

    Args:
        table: from `questions.method_changes`.
        caption: printed below.
        layer: path of one, or the mean over all.

    Raises:
        ValueError: the layer is not in the table.
    """
    table = table.loc[table["layer"] == layer]
    figure = CellFigure(figsize=(WIDTH, 3.1), layout="constrained")
    pair = figure.subplots(1, 2)
    colours = dict(zip([m for m in table["method"].unique() if m != OTHER_SEEDS], TARGET_COLOURS * 8, strict=False))
    texts = {"ratio": ("largest / smallest share,\ntimes plain's", 1.0),
             "missing_share": ("share of the target that\nplain misses, less plain's", 0.0)}  # fmt: skip
    for axes, (measure, (label, still)) in zip(pair, texts.items(), strict=True):
        for place, (method, colour) in enumerate((colours | {OTHER_SEEDS: GREY}).items()):
            part = table[(table["method"] == method) & (table["measure"] == measure)]
            line = ":" if method == OTHER_SEEDS else LINES[place % 3]
            if len(part):
                name = "plain's other seeds (no method)" if method == OTHER_SEEDS else method
                band(axes, part, "step", "value", colour, line, f"{name} ({part['images'].max()} images)")
        axes.axhline(still, color="0.2", linewidth=0.6)
        axes.set(xlabel="step", ylabel=label)
        axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(-0.02, 1.0))
    figure.supxlabel(caption, fontsize=7, color="0.35")
    return figure


@styled
def pointing_over_steps(table: pd.DataFrame, caption: str) -> Figure:
    """Return a panel per layer: hits of a map's highest cell and mass in the object's box, with what chance gives.

    Args:
        table: from `pointing.pointing_means`.
        caption: printed below.

    Raises:
        ValueError: the table is empty.
    """
    figure, panels = _panels(layers_of(table))
    lines = (("hit", TARGET_COLOURS[0], "-", "highest cell in the box"), ("mass", NEGLECTED, "--", "mass in the box"),
             ("other", TARGET_COLOURS[2], "-.", "mass in the other target's box"),
             ("area", "0.2", ":", "mass of an even map"), ("cells", "0.6", ":", "hits of a random cell"))  # fmt: skip
    for layer, axes in panels.items():
        part = table[table["layer"] == layer]
        for measure, colour, line, label in lines:
            band(axes, part, "step", measure, colour, line, label)
        axes.set_ylim(0, 1)
    _label_left(panels, "share")
    return _finished(figure, next(iter(panels.values())), caption)


def short_layer(path: str) -> str:
    """Return "up 1.0" for the first attention of the second up-sampling block; a path of another form as it is."""
    block, _, rest = path.partition("_block")
    numbers = [part for part in rest.split(".") if part.isdigit()]
    if block not in ("down", "mid", "up") or not numbers:
        return path
    numbers = numbers[:2] if block != "mid" else numbers[:1]
    return f"{block} {'.'.join(numbers)}"


def layers_of(table: pd.DataFrame) -> list[str]:
    """Return a table's layers, in its order."""
    return list(dict.fromkeys(table["layer"]))


def _panels(layers: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    if not layers:
        raise ValueError("the table must have rows of at least one layer, got none")
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure = CellFigure(figsize=(WIDTH, 1.45 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[len(layers) :]:
        axes.set_visible(False)
    panels = dict(zip(layers, grid, strict=False))
    for place, (layer, axes) in enumerate(panels.items()):
        axes.set_title(short_layer(layer), loc="left")
        if place + columns >= len(layers):
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
    return figure, panels


def band(
    axes: Axes, rows: pd.DataFrame, x: str, name: str, colour: str, line: str, label: str, marker: str = ""
) -> None:
    """Draw a column of a table over another, with its interval."""
    rows = rows.sort_values(x)
    axes.plot(
        rows[x], rows[name], color=colour, linestyle=line, linewidth=1.2, label=label, marker=marker, markersize=3
    )
    axes.fill_between(rows[x], rows[f"{name}_low"], rows[f"{name}_high"], color=colour, alpha=0.16, linewidth=0)


def _label_left(panels: dict[str, Axes], label: str) -> None:
    for place, axes in enumerate(panels.values()):
        if place % 4 == 0:
            axes.set_ylabel(label)


def _finished(figure: Figure, first: Axes, caption: str) -> Figure:
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)), frameon=False)
    figure.supxlabel(caption, fontsize=7, color="0.35")
    return figure


def matrix(axes: Axes, values: np.ndarray, rows: Sequence[str], scale: Normalize = AUC_SCALE) -> None:
    """Draw a matrix, its rows named, in colours that are white in the middle of the scale."""
    axes.imshow(values, AUC_COLOURS, norm=scale, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def step_ticks(axes: Axes, steps: Sequence[int]) -> None:
    """Label some columns of a matrix with their steps."""
    places = sorted({round(p) for p in np.linspace(0, len(steps) - 1, min(5, len(steps)))})
    axes.set_xticks(places, [str(steps[place]) for place in places])
