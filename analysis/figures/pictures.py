"""Figures of images: what methods make of the same prompt and seed, and where a word's attention lies.

Conventions: pictures are arrays ``height width channel`` of uint8, by (method, prompt, seed); `found` has a row per
picture and target, as `analysis.tables.detections` beside a column prompt. `caption` is printed below: where prompt
set, protocol and world belong. Figures are returned, as wide as a page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.attention import attention_overlays
from analysis.figures.style import (
    NEGLECTED,
    TARGET_COLOURS,
    WIDTH,
    CellFigure,
    Picture,
    add_boxes,
    add_frame,
    check_drawable,
    show,
    styled,
    wrapped,
)

Pictures = Mapping[tuple[str, str, int], Picture]


@styled
def method_grid(pictures: Pictures, found: pd.DataFrame, caption: str = "", boxes: bool = False) -> Figure:
    """Return a row of images per method, a column per prompt and seed; what misses a target is framed and says so.

    Args:
        pictures: rows and columns in their order; where a method has none it is n/a.
        found: columns method, prompt, seed, target, found; with `boxes` also left, top, right, bottom.
        caption: printed below.
        boxes: whether to draw what was found.

    Raises:
        ValueError: there is no picture, or one has no rows in `found`.
    """
    judged = _judged(pictures, found)
    methods, prompts = (list(dict.fromkeys(key[place] for key in pictures)) for place in (0, 1))
    columns = [(p, seed) for p in prompts for seed in dict.fromkeys(key[2] for key in pictures if key[1] == p)]
    left, gap = 0.95, 0.06
    side = min(1.5, (WIDTH - left) / len(columns) - gap)
    tall = side * max(one.shape[0] / one.shape[1] for one in pictures.values())
    step = tall + 0.06 + 0.1 * max((~rows["found"]).sum() for rows in judged.values())
    heads = {p: wrapped(p, (side + gap) * sum(q == p for q, _ in columns), 8.0) for p in prompts}
    head = 0.15 * (1 + max(text.count("\n") for text in heads.values())) + 0.2
    figure = _sheet(head + step * len(methods), caption)
    for place, (prompt, seed) in enumerate(columns):
        start = left + place * (side + gap)
        if not place or columns[place - 1][0] != prompt:
            _write(figure, start, 0.02, heads[prompt])
        _write(figure, start + side / 2, head - 0.15, f"seed {seed}", ha="center", fontsize=7, color="0.35")
        for row, key in enumerate((method, prompt, seed) for method in methods):
            top = head + step * row
            if key in pictures:
                _add_picture(figure, start, top, side, pictures[key], judged[key], boxes)
            else:
                _write(figure, start + side / 2, top + tall / 2, "n/a", ha="center", va="center", color="0.5")
    for row, method in enumerate(methods):
        _write(
            figure,
            0.02,
            head + step * row + tall / 2,
            wrapped(method, left - 0.05, 7.5),
            va="center",
            fontsize=7.5,
        )
    return figure


@styled
def pairs(pictures: Pictures, found: pd.DataFrame, caption: str = "", columns: int = 3) -> Figure:
    """Return two methods' images of the same prompt and seed side by side, so many pairs in a row.

    `pictures` and `found` are as in `method_grid`, of two methods; the first one's image is at the left.

    Raises:
        ValueError: there is no picture, one has no rows in `found`, or there are not two methods with the same images.
    """
    judged, methods = _judged(pictures, found), list(dict.fromkeys(key[0] for key in pictures))
    shown = list(dict.fromkeys(key[1:] for key in pictures))
    if len(methods) != 2 or len(pictures) != 2 * len(shown):
        raise ValueError(f"pictures must be of the same prompts and seeds of two methods, got {methods}")
    columns = min(columns, len(shown))
    across, gap = WIDTH / columns, 0.04
    side = min(1.6, (across - 0.15) / 2 - gap)
    tall = side * max(one.shape[0] / one.shape[1] for one in pictures.values())
    heads = [wrapped(prompt, 2 * side, 8.0) for prompt, _ in shown]
    head = 0.15 * (1 + max(text.count("\n") for text in heads)) + 0.18
    step = head + tall + 0.12 + 0.1 * max((~rows["found"]).sum() for rows in judged.values())
    figure = _sheet(step * -(-len(shown) // columns), caption)
    for place, (key, text) in enumerate(zip(shown, heads, strict=True)):
        left, top = across * (place % columns), step * (place // columns)
        _write(figure, left, top + 0.02, text)
        for turn, method in enumerate(methods):
            start = left + turn * (side + gap) + 0.02
            _write(figure, start, top + head - 0.14, method, fontsize=7, color="0.35")
            _add_picture(figure, start, top + head, side, pictures[method, *key], judged[method, *key])
    return figure


def maps_over_steps(
    maps: pd.DataFrame, pictures: Mapping[str, Picture], steps: Sequence[int], caption: str = ""
) -> Figure:
    """Return targets' maps at some steps, of a method that edits them those after the edit.

    Args:
        maps: as in `figures.attention_overlays`.
        pictures: by method, in the order of the rows.
        steps: columns.
        caption: printed below.

    Raises:
        ValueError: there is no picture, or a method has no maps at these steps.
    """
    edits = set(maps.loc[maps["phase"] == "edited", "method"])
    last = maps["phase"].eq("edited") | ~maps["method"].isin(edits)
    return attention_overlays(maps[last & maps["step"].isin(list(steps))], pictures, caption)


def _sheet(height: float, caption: str) -> Figure:
    """Return a page on which everything is put by hand, with its caption below so many inches."""
    lines = wrapped(caption, WIDTH).count("\n") + bool(caption)
    figure = CellFigure(figsize=(WIDTH, height + 0.13 * lines + 0.05 * bool(caption)))
    _write(figure, 0.0, height + 0.05, wrapped(caption, WIDTH), fontsize=7, color="0.35")
    return figure


def _write(figure: Figure, left: float, top: float, text: str, **options: Any) -> None:
    """Write a text whose left upper corner is so many inches from the figure's."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, **{"va": "top"} | options)


def _add_picture(
    figure: Figure, left: float, top: float, side: float, picture: Picture, rows: pd.DataFrame, boxes: bool = False
) -> Axes:
    """Show an image `side` inches wide at a place in inches; if it misses targets, frame it and name them below.

    Args:
        figure: a `sheet`.
        left: of the image's left upper corner, from the figure's left.
        top: of the same, from the figure's top.
        side: how wide the image is.
        picture: the image.
        rows: of its targets: target, found; for boxes also left, top, right, bottom.
        boxes: whether to draw them.
    """
    (width, height), tall = figure.get_size_inches(), side * picture.shape[0] / picture.shape[1]
    axes = figure.add_axes((left / width, 1 - (top + tall) / height, side / width, tall / height))
    show(axes, picture)
    if boxes:
        colours = dict(zip(rows["target"], TARGET_COLOURS * len(rows), strict=False))
        add_boxes(axes, found := rows[rows["found"]], colours)
        for row in found.itertuples(index=False):
            below = {"xytext": (1, -1), "textcoords": "offset points", "va": "top", "fontsize": 5}
            long = 0.6 * 5 / 72 / side * len(row.target) * picture.shape[1]  # pixels that the name takes
            place = max(0.0, min(row.left, picture.shape[1] - long)), row.top
            axes.annotate(row.target, place, color=colours[row.target], clip_on=True, **below)
    missing = [f"no {target}" for target in rows.loc[~rows["found"], "target"]]
    if missing:
        add_frame(axes)
        size = min(6.5, 72 * side / (0.56 * max(map(len, missing))))  # not into the next image's
        text = {"fontsize": size, "color": NEGLECTED, "ha": "center", "linespacing": 1.05}
        _write(figure, left + side / 2, top + tall + 0.03, "\n".join(missing), **text)
    return axes


def _judged(pictures: Pictures, found: pd.DataFrame) -> dict[tuple[str, str, int], pd.DataFrame]:
    keyed = dict(list(found.groupby(["method", "prompt", "seed"], sort=False)))
    check_drawable(pictures, pd.DataFrame({"picture": list(keyed)}), "picture")
    return {key: keyed[key] for key in pictures}
