"""A paper's table as data: numbers with their intervals and tests, and how each metric is written.

Conventions:
    Numbers are as the metric has them (rates in [0, 1]); only what is printed is scaled, rounded and, of a rate, cut
    at 0 and 100 %, because a t interval does not know where shares end.
    A cell without a number is "--", of what does not exist or was not made, or "n/a", of a method that does not apply.
    What is not known of a number is NaN, or None where it would be counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import isnan, nan
from types import MappingProxyType
from typing import Literal

SIGNIFICANT = 0.05
HIGHER, LOWER, TIMES = "†", "‡", "\N{MULTIPLICATION SIGN}"
COSTS = ("overhead", "passes", "gradient_passes")

Missing = Literal["--", "n/a"]


@dataclass(frozen=True)
class Style:
    """How a metric's numbers are written.

    Attributes:
        title: heading of its column.
        arrow: "↑" where more is better, "↓" where less is asked for, "" where neither.
        scale: what numbers are multiplied by.
        digits: after the point.
        unit: behind each number, but not its interval.
        share: whether the numbers are shares of a whole, so that their intervals end at 0 and 1.
        best: whether the best one can be told: of all others none is printed bold.
    """

    title: str
    arrow: Literal["↑", "↓", ""] = ""
    scale: float = 1.0
    digits: int = 3
    unit: str = ""
    share: bool = False
    best: bool = False

    @property
    def heading(self) -> str:
        """The title with its arrow."""
        return f"{self.title} {self.arrow}".strip()

    def text(self, value: float) -> str:
        """Return a number as it is printed, with its unit; "" of NaN."""
        return "" if isnan(value) else self._rounded(value) + self.unit

    def interval(self, number: "Number") -> str:
        """Return the number's interval as it is printed, "" where it has none."""
        if isnan(number.low) or isnan(number.high):
            return ""
        ends = (max(number.low, 0.0), min(number.high, 1.0)) if self.share else (number.low, number.high)
        return f"[{self._rounded(ends[0])}, {self._rounded(ends[1])}]"

    def _rounded(self, value: float) -> str:
        text = f"{self.scale * value:.{self.digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text


STYLES = MappingProxyType(
    {
        "clip_cos": Style("CLIP", "↑", best=True),
        "clip_min_half": Style("CLIP, halves", "↑", best=True),
        "detection_rate": Style("Det. rate", "↑", 100.0, 1, "%", share=True, best=True),
        "lpips": Style("LPIPS", "↓"),
        "lpips-tiny": Style("LPIPS (tiny)", "↓"),
        "overhead": Style("Overhead", "↓", 100.0, 1, "%"),
        "passes": Style("Passes", "↓", digits=2, unit=TIMES),
        "gradient_passes": Style("Gradients", "↓", digits=2, unit=TIMES),
        "fid": Style("FID", "↓", digits=2),
        "kid": Style("KID", "↓", digits=4),
        "cmmd_u": Style("CMMD (U)", "↓"),
        "cmmd_v": Style("CMMD (V)", "↓"),
    }
)


def style_of(metric: str, difference: bool = False) -> Style:
    """Return how a metric is written, or a difference of two of its numbers."""
    style = STYLES.get(metric, Style(metric))
    return Style("Difference", "", style.scale, style.digits) if difference else style


@dataclass(frozen=True)
class Number:
    """What is known of a cell.

    Attributes:
        value: the mean, or what the column says.
        low: lower end of its 95 % interval.
        high: upper end of it.
        protocol: what the number means; "" of costs.
        prompts: how many; None where it is about a set of images.
        seeds: of each prompt.
        images: how many.
        interval: what the interval is over.
        difference: to the baseline, or to the first of two runs.
        difference_low: lower end of its 95 % interval.
        difference_high: upper end of it.
        p: of the difference.
        p_holm: corrected over all differences of the table.
        p_best: of the difference to the best of the column, corrected over the column; 1 for the best itself.
        bold: whether it is the best, or not significantly worse.
        counted: whether the column's numbers are of different images, so that each says of how many.
    """

    value: float
    low: float = nan
    high: float = nan
    protocol: str = ""
    prompts: int | None = None
    seeds: int | None = None
    images: int | None = None
    interval: str = ""
    difference: float = nan
    difference_low: float = nan
    difference_high: float = nan
    p: float = nan
    p_holm: float = nan
    p_best: float = nan
    bold: bool = False
    counted: bool = False

    @property
    def mark(self) -> str:
        """A dagger where the difference is significant: "†" for higher, "‡" for lower."""
        if not self.p_holm < SIGNIFICANT:
            return ""
        return HIGHER if self.difference > 0 else LOWER


Cell = Number | Missing


@dataclass(frozen=True)
class Column:
    """A column: whose numbers of which metric, and its heading below that of its group."""

    source: str
    metric: str
    group: str
    title: str
    difference: bool = False

    @property
    def style(self) -> Style:
        """How its numbers are written."""
        return style_of(self.metric, self.difference)

    def below(self, number: Number) -> str:
        """Return what is printed in small type below a number: its interval, and its images if these differ."""
        ends = self.style.interval(number)
        return f"{ends} n {number.images}".strip() if number.counted else ends


@dataclass(frozen=True)
class Row:
    """A method's cells, one a column; `label` is its name in print."""

    method: str
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table for a paper; `analysis.paper.files` writes it.

    Attributes:
        caption: all that a reader must know, in plain text.
        columns: in order; those of one group side by side.
        rows: in order.
        world: "real" or "emoji".

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    world: str

    def __post_init__(self) -> None:
        """Refuse what is no table."""
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{row.method} must have {len(self.columns)} cells, got {len(row.cells)}")

    def _repr_html_(self) -> str:
        from analysis.paper.files import shown_in_a_cell  # which writes tables of this kind

        return shown_in_a_cell(self)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The headings above the columns' own, each with the number of its columns."""
        return [(group, len(list(columns))) for group, columns in groupby(column.group for column in self.columns)]

    def numbers(self) -> Iterator[tuple[Row, Column, Cell]]:
        """Yield every cell, row by row."""
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                yield row, column, cell
