"""What all figures share: type, colours, how an image is shown, where names go that must not overlap.

Conventions: sizes are inches, type is 8 point, pages are 6.75 or 3.25 inches wide. Colours are Okabe and Ito's, which
colour-blind readers can tell apart, and never carry a meaning alone: a method has a colour, a marker and a dash.
Text is shown as it is written: a "$" in a prompt begins no formula.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from textwrap import fill
from typing import Any, ParamSpec, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

Picture = UInt8[np.ndarray, "height width channel"]
P = ParamSpec("P")

WIDTH, NARROW = 6.75, 3.25  # inches: of a page, of a column
HUE, INK, NEGLECTED, GREY = "#9ecae1", "#1f4e79", "#d55e00", "#56606b"
TARGET_COLOURS = ("#0072b2", "#e69f00", "#cc79a7", "#009e73")
OUTCOME_COLOURS = {"won": "#009e73", "lost": "#d55e00", "both found": GREY, "both fail": GREY}
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,
    "pdf.fonttype": 42,  # text stays text
}
_HYPHEN = "\N{NON-BREAKING HYPHEN}"  # stands for a hyphen at which no line may end
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
_DASHES = ((0, ()), (0, (4.0, 1.5)), (0, (1.0, 1.0)), (0, (6.0, 1.5, 1.0, 1.5)), (0, (3.0, 1.0, 1.0, 1.0, 1.0, 1.0)))


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str
    dash: tuple[int, tuple[float, ...]]


@dataclass(frozen=True)
class Measure:
    """How a metric is written: its values times `scale`, with so many digits."""

    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def text(self, value: float) -> str:
        """Return a value of the metric as it is printed, without its unit."""
        return f"{value * self.scale:.{self.digits}f}"


MEASURES = {
    "detection_rate": Measure("detection rate", "%", 100.0, 1),
    "clip_cos": Measure("CLIP score"),
    "clip_min_half": Measure("CLIP score, smaller half"),
    "lpips": Measure("LPIPS to plain"),
    "lpips-tiny": Measure("LPIPS (tiny trunk) to plain"),
}


def measure_of(metric: str) -> Measure:
    """Return how a metric is written; one that is not known here by its name, with three digits."""
    return MEASURES.get(metric, Measure(metric))


def looks(methods: Sequence[str], baseline: str) -> dict[str, Look]:
    """Return how each method is drawn; the baseline is black, whatever its place.

    Of up to 66 methods no two have the same colour and marker.
    """
    found, others = {baseline: Look("#000000", "o", _DASHES[0])}, [name for name in methods if name != baseline]
    for place, name in enumerate(others):
        found[name] = Look(*(kinds[place % len(kinds)] for kinds in (_COLOURS, _MARKERS, _DASHES)))
    return found


class CellFigure(Figure):
    """A figure that a notebook's cell shows as it is, without ``%matplotlib inline``."""

    def png(self) -> bytes:
        """Return it as a file's bytes."""
        written = io.BytesIO()
        self.savefig(written, format="png", dpi=110)
        return written.getvalue()

    _repr_png_ = png


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in our style without changing anyone's settings."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def panel(height: float, width: float, caption: str) -> tuple[Figure, Axes]:
    """Return a figure with one panel and a caption below it.

    Raises:
        ValueError: the width is neither a page's nor a column's.
    """
    if width not in (WIDTH, NARROW):
        raise ValueError(f"width must be {WIDTH} (a page) or {NARROW} (a column), got {width}")
    lines = wrapped(caption, width)
    more = 0.13 * (lines.count("\n") + bool(lines)) + 0.35 * (width == NARROW)  # a narrow one's labels have two lines
    figure = CellFigure(figsize=(width, height + more), layout="constrained")
    if lines:
        figure.supxlabel(lines, fontsize=7, color="0.35")
    return figure, figure.add_subplot()


def page_of(axes: Axes) -> Figure:
    """Return the figure in which a panel is."""
    return cast(Figure, axes.get_figure(root=True))


def wrapped(text: str, width: float, size: float = 7.0) -> str:
    """Return the text in lines that fit into `width` inches in type of `size` points.

    A word that fits into a line stays whole, "emoji-owlv2" too; a longer one is broken, at a hyphen if it has one.
    """
    most = max(1, int(72 * width / (0.56 * size)))
    words = [word.replace("-", _HYPHEN) if len(word) <= most else word for word in text.split(" ")]
    return fill(" ".join(words), most).replace(_HYPHEN, "-")


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, a true minus before what is negative: "+5.7"."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def label_x(axes: Axes, text: str, key: str = "") -> None:
    """Label the x axis, in as many lines as the figure's width needs, and say above the panel what its marks mean."""
    width = page_of(axes).get_size_inches()[0]
    axes.set_xlabel(wrapped(text, width - 1.5, 8.0))
    axes.set_title(wrapped(key, width - 1.5), loc="left", fontsize=7, color="0.35")


def settle(figure: Figure) -> None:
    """Lay the figure out for good, so that what is measured now stays true."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def columns_beside(axes: Axes, columns: Mapping[str, Sequence[str]]) -> None:
    """Print columns of text at the right of a panel, beside the rows 0, 1, ..., each under its heading.

    The rows are those of `rows_down`.
    """
    figure, left = page_of(axes), 8.0
    for heading, cells in columns.items():
        options = {"textcoords": "offset points", "fontsize": 7, "annotation_clip": False}
        side = {"xytext": (left, 0), "xycoords": axes.get_yaxis_transform(), "va": "center_baseline"}
        texts = [axes.annotate(cell, (1, row), **options | side) for row, cell in enumerate(cells)]
        above = {"xytext": (left, 4), "xycoords": "axes fraction", "va": "bottom", "color": "0.35"}
        texts.append(axes.annotate(heading, (1, 1), **options | above))
        left += max(text.get_window_extent().width for text in texts) * 72 / figure.dpi + 10


def name_points(
    axes: Axes, points: Float[np.ndarray, "point 2"], names: Sequence[str], lines: Sequence[Float[np.ndarray, "_ 2"]]
) -> None:
    """Write each point's name beside it, so that no name covers another, a point or a line to a name.

    A name goes to the nearest free place around its point, with a line to it if that is far; the most crowded point's
    goes first. `lines` are polylines that names had better not cover. The figure must be laid out for good (`settle`).
    Where the panel is too full for all, the names that are left cover as little as they can.
    """
    scale = page_of(axes).dpi / 72
    places = axes.transData.transform(points) / scale  # in points of type from here on
    frame = np.array(axes.get_window_extent().extents) / scale
    drawn = np.concatenate([_dotted(axes.transData.transform(line) / scale) for line in lines])
    taken = [np.concatenate([place - 4, place + 4]) for place in places]
    ties, near = np.zeros((0, 2)), (abs(places[:, None] - places) < (80, 25)).all(-1).sum(1)
    for index in np.argsort(-near, kind="stable"):
        options = {"xytext": (0, 0), "textcoords": "offset points", "ha": "center", "va": "center"}
        text = axes.annotate(names[index], points[index], fontsize=7, **options)
        size = np.array(text.get_window_extent().size) / scale + 2
        centres = places[index] + _AROUND * _TURNS + _TURNS * size / 2
        boxes = np.concatenate([centres - size / 2, centres + size / 2], 1)
        edges = np.clip(places[index], boxes[:, :2], boxes[:, 2:])
        tie = places[index] + np.linspace(0, 1, 24)[:, None, None] * (edges - places[index])
        others = np.array(taken[:index] + taken[index + 1 :]).reshape(-1, 4)
        hard = _overlap(boxes, np.array(taken)) + 5 * _inside(ties, boxes).sum(1)
        hard += 100 * np.maximum(frame[:2] - boxes[:, :2], boxes[:, 2:] - frame[2:]).clip(0).sum(1)
        hard += 5 * sum(_inside(dots, others).any(0) for dots in tie)
        best = int(np.argmin(1000 * hard + 2 * _inside(drawn, boxes).sum(1) + _AROUND[:, 0]))
        text.set_position(centres[best] - places[index])
        taken.append(boxes[best])
        if np.hypot(*(edges[best] - places[index])) > 9:
            ties = np.concatenate([ties, tie[:, best]])
            ends = axes.transData.inverted().transform(tie[[0, -1], best] * scale)
            axes.plot(*ends.T, color="0.6", linewidth=0.5, zorder=1)


_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_TURNS = np.tile(np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)]), (36, 1))
_AROUND = np.repeat(np.arange(6, 150, 4), 24)[:, None]  # how far, in points of type


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how much of the others each box covers."""
    sides = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
    return sides.clip(0).prod(-1).sum(1)


def _dotted(line: np.ndarray) -> np.ndarray:
    """Return dots along a polyline, 1 apart."""
    parts = [np.linspace(a, b, 2 + int(np.hypot(*(b - a)))) for a, b in pairwise(line)]
    return np.concatenate([np.zeros((0, 2)), *parts])


def _inside(dots: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return which dots lie in which boxes: a row per box, a column per dot."""
    return np.asarray(((dots > boxes[:, None, :2]) & (dots < boxes[:, None, 2:])).all(-1))


def front(points: np.ndarray) -> list[int]:
    """Return the points than which no other is both cheaper (the first number) and better, by their cost."""
    best: list[int] = []
    for place in np.lexsort((-points[:, 1], points[:, 0])):
        if not best or points[place, 1] > points[best[-1], 1]:
            best.append(int(place))
    return best


def show(axes: Axes, picture: Picture) -> None:
    """Show an image without ticks or frame."""
    axes.axis("on")
    axes.imshow(picture, interpolation="bicubic")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def add_boxes(axes: Axes, found: pd.DataFrame, colours: Mapping[str, str]) -> None:
    """Draw the found targets' boxes, each in its target's colour."""
    for row in found.itertuples(index=False):
        corner, size = (row.left, row.top), (row.right - row.left, row.bottom - row.top)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colours[row.target], linewidth=1.2))


def add_frame(axes: Axes) -> None:
    """Frame an image in which something is missing."""
    axes.spines[:].set(visible=True, color=NEGLECTED, linewidth=1.6)


def rows_down(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows 0, 1, ... of a panel, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def check_drawable(pictures: Mapping[Any, Picture], rows: pd.DataFrame | None = None, key: str = "sample") -> None:
    """Refuse to draw no picture at all, or one of which the table says nothing.

    Raises:
        ValueError: that is so.
    """
    if not pictures:
        raise ValueError("pictures must hold at least one image, got none")
    if rows is not None and (absent := [name for name in pictures if name not in set(rows[key])]):
        raise ValueError(f"every picture must have rows in the table, got none for {key} {absent}")
