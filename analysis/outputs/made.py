"""A table or a figure of a run, with what a reader must be told of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd
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
        numbers: that it draws, where no table of the run has them; each by what its file's name ends in.
    """

    name: str
    title: str
    text: str
    alternative: str
    draw: Callable[[], Figure]
    numbers: Mapping[str, pd.DataFrame] = field(default_factory=dict)


Made = MadeTable | MadeFigure
