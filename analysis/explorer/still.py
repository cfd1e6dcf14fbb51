"""The figure that stands where the explorer cannot be shown: on GitHub, in a PDF, without a kernel."""

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from analysis.explorer.slices import MEAN, Choice
from analysis.explorer.view import Pane, View
from analysis.figures.attention import GLOW
from analysis.figures.style import GREY, NEGLECTED, WIDTH, CellFigure, show, styled, wrapped


@styled
def still(view: View, name: str, choice: Choice, pictures: Mapping[int, bytes]) -> Figure:
    """Return the map over its image and the words' curves, a row for each image.

    Args:
        view: what is to be seen.
        name: of the word.
        choice: of layers, head, step and phase, for the caption.
        pictures: as PNG, by the images' numbers; empty where there is none.
    """
    figure = CellFigure(figsize=(WIDTH, 2.1 * len(view.panes) + 0.4), layout="constrained")
    grid = figure.subplots(len(view.panes), 2, squeeze=False, width_ratios=[1, 2.6])
    scale = Normalize(0, view.map_top)
    for row, pane in zip(grid, view.panes, strict=True):
        _map(row[0], pane, pictures.get(pane.traced.image, b""), scale)
        row[1].set_title(wrapped(pane.traced.title, 4.6, 8.0), loc="left")
        _curves(row[1], pane, name, choice.step, 1.05 * view.curve_top)
    bar = figure.colorbar(ScalarMappable(scale, GLOW), ax=grid[:, 0], location="left", shrink=0.8, aspect=25)
    bar.outline.set_linewidth(0.5)
    head = "mean of all heads" if choice.head == MEAN else f"head {choice.head}"
    said = f"attention to {name!r}, step {choice.step}, layers {choice.layers}, {head}, {choice.phase} maps"
    figure.supxlabel(wrapped(said, WIDTH), fontsize=7, color="0.35")
    return figure


def _map(axes: Axes, pane: Pane, png: bytes, scale: Normalize) -> None:
    if png:
        show(axes, np.asarray(Image.open(io.BytesIO(png)).convert("L").convert("RGB")))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if pane.map is None:
        axes.text(0.5, 0.5, wrapped(pane.note, 1.4), ha="center", va="center", transform=axes.transAxes, color=GREY)
        return
    width, height = (axes.get_xlim()[1] + 0.5, axes.get_ylim()[0] + 0.5) if png else (1.0, 1.0)
    axes.imshow(pane.map, GLOW, norm=scale, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")


def _curves(axes: Axes, pane: Pane, name: str, step: int, top: float) -> None:
    heights = _apart([float(line[-1]) for _, line in pane.lines], 0.075 * top)
    for (word, line), height in zip(pane.lines, heights, strict=True):
        chosen = word.name.lower() == name.lower()
        colour = NEGLECTED if chosen else "#0072b2" if word.is_target else "0.65"
        axes.plot(pane.steps, line, color=colour, linewidth=1.8 if chosen else 0.9)
        place = (pane.steps[-1], height)
        axes.annotate(word.name, place, (4, 0), textcoords="offset points", va="center", color=colour, fontsize=7)
    axes.axvline(step, color="0.7", linewidth=0.6, linestyle=":")
    axes.set(xlabel="step", ylabel="0.9-quantile", ylim=(0, top))


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return the heights, those that are nearer to one another than `gap` moved up."""
    moved = list(heights)
    for before, after in pairwise(np.argsort(heights).tolist()):
        moved[after] = max(moved[after], moved[before] + gap)
    return moved
