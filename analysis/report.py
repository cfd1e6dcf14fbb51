"""A self-contained HTML page about one prompt: everything is inside, nothing is fetched.

Conventions: figures come as matplotlib figures and go into the page as PNG data URIs; text is escaped.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

DPI = 200
OUTCOME_MEANING = {
    "won": "all found in the regulated image only",
    "both found": "all found in both images",
    "both fail": "something missing in both images",
    "lost": "all found in the plain image only",
}


@dataclass(frozen=True)
class Plate:
    """A figure of the page: its image, what to see in it, and the text for those who do not see it."""

    name: str
    title: str
    text: str
    alternative: str
    png: bytes

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Query:
    """A question to the trace, and the SQL that answers it."""

    question: str
    sql: str


@dataclass(frozen=True)
class Page:
    """All that the page says.

    Attributes:
        prompt: the one prompt.
        targets: what its images must show.
        selection: how prompt, seeds and shown images were chosen.
        emoji: whether all this is the emoji world's.
        counts: images by outcome: won, lost, both found, both fail.
        plates: the figures in order.
        numbers: a row per method, ready to print.
        protocol: name of the detection protocol.
        queries: SQL to try next.
        settings: name and value of what was run, ready to print.
    """

    prompt: str
    targets: tuple[str, ...]
    selection: tuple[str, ...]
    emoji: bool
    counts: pd.Series
    plates: tuple[Plate, ...]
    numbers: pd.DataFrame
    protocol: str
    queries: tuple[Query, ...]
    settings: dict[str, str]


def png_of(figure: Figure) -> bytes:
    """Return the figure as a PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def html_of(page: Page) -> str:
    """Return the page as one HTML document."""
    environment = Environment(
        loader=PackageLoader("analysis"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    counts = {name: int(page.counts[name]) for name in OUTCOME_MEANING}
    return environment.get_template("demo.html.j2").render(
        page=page,
        counts=counts,
        total=sum(counts.values()),
        plain=counts["lost"] + counts["both found"],
        regulated=counts["won"] + counts["both found"],
        meaning=OUTCOME_MEANING,
        columns=list(page.numbers.columns),
        rows=page.numbers.astype(str).to_numpy().tolist(),
        targets=_sentence_start(page.targets),
    )


def listed(words: Sequence[str]) -> str:
    """Return the words as a list in a sentence: "cat", "cat and dog", "cat, dog and bird"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _sentence_start(targets: Sequence[str]) -> str:
    """Return "Cat and dog are both", the beginning of a sentence about the targets."""
    text = listed(targets)
    together = {1: "is", 2: "are both"}.get(len(targets), "are all")
    return f"{text[:1].upper()}{text[1:]} {together}"
