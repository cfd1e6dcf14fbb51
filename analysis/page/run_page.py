"""The page of a run: one HTML file with its question, answers, tables, figures, warnings and every image.

    page = RunPage("Regulated or not", "Does it help?", "emoji", command, digest, gallery=Gallery(entries, names))
    Path("index.html").write_text(html_of_run(page), encoding="utf-8")

Conventions:
    Everything is inside, nothing is fetched; the page says so to the browser, which would refuse.
    Text is escaped. Tables come as HTML, and are trusted. Figures are SVG or PNG files, shown as images, in which a
    browser runs nothing.
    Links go to files beside the page, and are relative to it.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.page.gallery import Gallery
from analysis.page.sprites import Packed, pack
from analysis.paper.files import STYLE_SHEET

PNG = b"\x89PNG\r\n\x1a\n"
ENLARGED, SIDE = (
    80,
    192,
)  # pixels: images up to the first are shown twice as large, others at most as large as the second
MOST_SEEDS = 100  # that one may choose from; of more, each prompt has its own
FRAME, GAP = 6, 12  # pixels around and between images, as in the template
World = Literal["emoji", "real"]
Kind = Literal["failure", "no-op", "not applicable", "note"]
OUTCOMES = {  # of a method against the baseline
    "won": "all found in this method's image only",
    "lost": "all found in the baseline's image only",
    "both found": "all found in both images",
    "both fail": "something missing in both images",
}


@dataclass(frozen=True)
class TableBlock:
    """A table of the page.

    Attributes:
        title: its heading.
        html: the `<table>`; trusted.
        caption: what its numbers are; "" if the table says so itself.
        files: links to the same table in other forms, by what they are called.
    """

    title: str
    html: str
    caption: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    Attributes:
        title: its heading.
        text: what to see in it.
        alternative: the same for those who do not see it.
        data: an SVG or PNG file.
        files: links to the same figure in other forms, by what they are called.
    """

    title: str
    text: str
    alternative: str
    data: bytes
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The figure as a data URI.

        Raises:
            ValueError: it is neither SVG nor PNG.
        """
        svg = self.data.lstrip()[:5] in (b"<?xml", b"<svg ", b"<svg>")
        if not svg and not self.data.startswith(PNG):
            raise ValueError(f"data must be an SVG or PNG file, got one that begins with {self.data[:8]!r}")
        return f"data:image/{'svg+xml' if svg else 'png'};base64," + base64.b64encode(self.data).decode()


@dataclass(frozen=True)
class Notice:
    """Something that a reader must know before using the numbers.

    Attributes:
        kind: "failure" (images, scores or figures are missing), "no-op" (a method changed nothing), "not applicable"
            (a method cannot be used on a set), "note".
        text: a sentence.
    """

    kind: Kind
    text: str


@dataclass(frozen=True)
class RunPage:
    """All that the page says.

    Attributes:
        title: of the run.
        question: that it answers.
        world: of models and detector; emoji numbers are marked as such.
        command: makes the run again.
        digest: of the run's specification.
        findings: the answer, in sentences.
        notices: failures first on the page, whatever their order here.
        tables: in order.
        drawings: in order.
        protocols: what each metric means exactly: the protocol's name, by the metric's.
        settings: name and value of what was run, ready to print.
        gallery: of all images, or None.
    """

    title: str
    question: str
    world: World
    command: str
    digest: str
    findings: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
    tables: tuple[TableBlock, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    protocols: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    gallery: Gallery | None = None


def html_of_run(page: RunPage) -> str:
    """Return the page as one HTML document.

    Raises:
        BadImage: a file of the gallery is missing or no image.
        ValueError: a figure is neither SVG nor PNG.
    """
    loader = PackageLoader("analysis")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    packed = pack(page.gallery) if page.gallery else None
    order = get_args(Kind)
    return environment.get_template("run.html.j2").render(
        page=page,
        notices=sorted(page.notices, key=lambda notice: order.index(notice.kind)),
        outcomes=OUTCOMES,
        shown=_shown(page.gallery, packed) if page.gallery and packed else None,
        table_style=Markup(STYLE_SHEET),
        script=Markup(loader.get_source(environment, "run.js")[0]),
    )


def _shown(gallery: Gallery, packed: Packed) -> dict[str, Any]:
    """Return what the template writes of the gallery."""
    names = [gallery.names.get(method, method) for method in gallery.methods]
    baseline, rows = gallery.methods.index(gallery.baseline), gallery.rows()
    seeds = sorted({row[3] for row in rows if row[3] is not None})
    sets, kinds = packed.sets, packed.kinds
    longest = max(max(sheet.width, sheet.height) for sheet in packed.sheets)
    side = 2 * longest if longest <= ENLARGED else min(longest, SIDE)
    return {
        "packed": packed,
        "sheets": [base64.b64encode(sheet.webp).decode() for sheet in packed.sheets],
        "linked": gallery.folder is not None,
        "images": len(gallery.entries),
        "of": gallery.of,
        "rows": len(rows),
        "baseline": names[baseline],
        "others": [(place, name) for place, name in enumerate(names) if place != baseline],
        "picks": [
            ("set", "Set", list(enumerate(sets))),
            ("kind", "Kind", [(place, kind or "none") for place, kind in enumerate(kinds)]),
            ("seed", "Seed", [(seed, seed) for seed in seeds] if len(seeds) <= MOST_SEEDS else []),
        ],
        "judged": any(entry.verdicts for entry in gallery.entries),
        "enlarged": longest <= ENLARGED,
        "side": side,
        "row": len(names) * (side + FRAME) + (len(names) - 1) * GAP,
    }
