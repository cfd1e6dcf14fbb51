"""A table or a figure of a run, with what a reader must be told of it."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from analysis.paper.tables import PaperTable


@dataclass(frozen=True)
class MadeTable:
    """A table.

    Attributes:
        name: of its files.
        title: on the page.
        table: with its caption.
    """

    name: str
    title: str
    table: PaperTable


@dataclass(frozen=True)
class MadeFigure:
    """A figure.

    Attributes:
        name: of its files.
        title: on the page.
        text: what to see in it.
        alternative: the same for those who do not see it.
        draw: makes it, a new one at every call.
    """

    name: str
    title: str
    text: str
    alternative: str
    draw: Callable[[], Figure]


Made = MadeTable | MadeFigure
