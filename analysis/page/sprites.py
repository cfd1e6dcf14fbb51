"""A gallery packed for a page: sprite sheets for its images, and plain data for its script.

Conventions:
    The images of a set and method lie on sheets of at most `SHEET` pixels a side, in rows; a browser unpacks only the
    sheets of which it shows something. Sheets are WebP files: without loss they are smaller than PNG files of the same,
    and are made in half the time.
    Small images are kept to the bit as long as a page of them has about 40 MB. Others are stored with loss, and made
    smaller until all of them together have at most `PIXELS` pixels.
    In the data, a box is in thousandths of the image's sides and does not reach beyond them.
"""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from analysis.page.gallery import Entry, Gallery, Verdict
from metrics.decoding import decode

SHEET = 2048
SMALL, EXACT = 128, 28_000_000  # pixels: the longer side of a small image; all of them, at about a byte each
PIXELS = 120_000_000  # with loss, about a fifth of a byte each
SIDES = (320, 256, 192, 160, 128, 96, 64)


@dataclass(frozen=True)
class Sheet:
    """Images of one size, in rows.

    Attributes:
        width: of one image, in pixels.
        height: of one image.
        columns: images in a row.
        lines: rows.
        webp: the file.
    """

    width: int
    height: int
    columns: int
    lines: int
    webp: bytes


@dataclass(frozen=True)
class Packed:
    """A gallery as a page holds it.

    Attributes:
        data: for the page's script, made of what JSON has.
        sets: numbered as in the data.
        kinds: of prompts, numbered as in the data.
        sheets: numbered as in the data.
        exact: whether the images are kept to the bit.
        reduced: whether some are smaller than in their files.
    """

    data: dict[str, object]
    sets: tuple[str, ...]
    kinds: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    exact: bool
    reduced: bool


def pack(gallery: Gallery) -> Packed:
    """Return the gallery's data and sheets.

    Raises:
        BadImage: an image's file is missing or no image.
    """
    exact, side = _fitting([_size(entry.image) for entry in gallery.entries])
    sets = tuple(dict.fromkeys(entry.prompt_set for entry in gallery.entries))
    kinds = tuple(dict.fromkeys(entry.kind for entry in gallery.entries))
    shelf, rows = _Shelf(exact, side), []
    for (prompt_set, _, prompt, seed), entries in gallery.rows().items():
        targets = list(dict.fromkeys(v.target for entry in entries.values() for v in entry.verdicts))
        lacking = gallery.not_applicable.get(prompt_set, ())
        cells = [
            _cell(entries[method], targets, shelf, None if exact else gallery.folder)
            if method in entries
            else "n/a" * (method in lacking) or None
            for method in gallery.methods
        ]
        kind = next(iter(entries.values())).kind
        rows.append([sets.index(prompt_set), kinds.index(kind), prompt, seed, targets, cells])
    sheets = shelf.closed()
    data = {
        "methods": [gallery.names.get(method, method) for method in gallery.methods],
        "baseline": gallery.methods.index(gallery.baseline),
        "sets": sets,
        "kinds": kinds,
        "sheets": [[sheet.width, sheet.height, sheet.columns, sheet.lines] for sheet in sheets],
        "rows": rows,
    }
    return Packed(data, sets, kinds, sheets, exact, shelf.reduced)


def _cell(entry: Entry, targets: Sequence[str], shelf: "_Shelf", folder: Path | None) -> list[object]:
    """Return [sheet, place, verdicts in the order of the targets, link]."""
    image = decode(entry.image).image
    said = {verdict.target: _said(verdict, image.size) for verdict in entry.verdicts}
    link = None if folder is None else quote(Path(os.path.relpath(entry.image.resolve(), folder.resolve())).as_posix())
    return [*shelf.put((entry.prompt_set, entry.method), image), [said.get(name) for name in targets], link]


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except OSError:
        return decode(path).image.size  # which says what is wrong with it


def _fitting(sizes: Sequence[tuple[int, int]]) -> tuple[bool, int]:
    """Return whether images can be kept to the bit, and to what longer side they are reduced."""
    if max(map(max, sizes)) <= SMALL and sum(width * height for width, height in sizes) <= EXACT:
        return True, SMALL
    for side in SIDES:
        if sum(math.prod(_within(size, side)) for size in sizes) <= PIXELS:
            return False, side
    return False, SIDES[-1]


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the size, made smaller if its longer side is above `side`."""
    share = min(1, side / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _said(verdict: Verdict, size: tuple[int, int]) -> list[object]:
    """Return [found, score, box] of a verdict."""
    score = None if verdict.score is None else round(verdict.score, 3)
    if verdict.box is None:
        return [int(verdict.found), score, None]
    sides = (*size, *size)
    box = [round(1000 * min(max(at / side, 0), 1)) for at, side in zip(verdict.box, sides, strict=True)]
    return [int(verdict.found), score, box]


class _Shelf:
    """Sheets being filled: a group's images of one size go onto one sheet until that is full."""

    def __init__(self, exact: bool, side: int):
        self.side, self.reduced = side, False
        self.options = {"lossless": True, "quality": 50, "method": 0} if exact else {"quality": 85, "method": 2}
        self.sheets: list[Sheet | None] = []
        self.open: dict[tuple[object, ...], tuple[int, list[Image.Image]]] = {}

    def put(self, group: tuple[str, str], image: Image.Image) -> tuple[int, int]:
        """Return the number of the image's sheet, and its place there."""
        if (size := _within(image.size, self.side)) != image.size:
            image, self.reduced = image.resize(size, Image.Resampling.LANCZOS), True
        key = (*group, image.size)
        if key not in self.open:
            self.open[key] = (len(self.sheets), [])
            self.sheets.append(None)
        number, images = self.open[key]
        images.append(image)
        if len(images) == math.prod(_most(image.size)):
            self.sheets[number] = self._sheet(images)
            del self.open[key]
        return number, len(images) - 1

    def closed(self) -> tuple[Sheet, ...]:
        """Return all sheets."""
        for number, images in self.open.values():
            self.sheets[number] = self._sheet(images)
        return tuple(sheet for sheet in self.sheets if sheet is not None)

    def _sheet(self, images: Sequence[Image.Image]) -> Sheet:
        width, height = images[0].size
        columns = min(len(images), _most((width, height))[0])
        lines = math.ceil(len(images) / columns)
        whole, buffer = Image.new("RGB", (columns * width, lines * height)), io.BytesIO()
        for place, image in enumerate(images):
            whole.paste(image, (place % columns * width, place // columns * height))
        whole.save(buffer, "WEBP", **self.options)
        return Sheet(width, height, columns, lines, buffer.getvalue())


def _most(size: tuple[int, int]) -> tuple[int, int]:
    """Return how many images of a size a sheet has beside and below each other."""
    return max(1, SHEET // size[0]), max(1, SHEET // size[1])
