"""A table or a figure of a run, with what a reader must be told of it; or why there is none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import WIDTH, wrapped
from analysis.paper.tables import PaperTable
from analysis.running.results import PartResults
from analysis.running.run import RunResults

WORLDS = {"emoji": "Emoji world, on its own small model and judges. ", "real": ""}


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


@dataclass(frozen=True)
class NotMade:
    """Something that is missing of a show.

    Attributes:
        what: the part or figure.
        reason: why it cannot be made.
    """

    what: str
    reason: str


Made = MadeTable | MadeFigure | NotMade


def figure_of(
    results: RunResults,
    part: PartResults,
    name: str,
    title: str,
    text: str,
    caption: str,
    draw: Callable[[str], Figure],
    numbers: Mapping[str, pd.DataFrame] | None = None,
) -> MadeFigure:
    """Return a figure of one part, whose name and title say which where there are several.

    Args:
        results: of the run.
        part: one of its parts.
        name: of the figure's files.
        title: on the page.
        text: what to see in it.
        caption: printed below it, after the world.
        draw: makes it, with its caption.
        numbers: as `MadeFigure` has them.
    """
    several = len(results.parts) > 1
    name, title = (f"{name}-{part.planned.part.name}", f"{title}: {part.title}") if several else (name, title)
    below = WORLDS[results.experiment.world] + caption
    head = title if title.endswith("?") else f"{title}."
    alternative = f"{head} {below}" if text in below else f"{head} {text} {below}"
    return MadeFigure(name, title, text, alternative, lambda: draw(wrapped(below, WIDTH)), numbers or {})
