"""How each layout says which prompt, seed and method an image has; the layouts are in ``metrics/layouts.py``.

Conventions: a reader goes over a folder's images and yields a picture, or a problem for one that it skips; a picture's
method is "" where the files do not say it. `fits` says whether an image speaks for a layout when none was named: a
name of one ASCII word may as well be an id or a class, so it is no sign of a prompt.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from metrics.pictures import Layout, Picture, Problem
from metrics.prompt_tables import PromptTable, Row, classes_of, template_targets

_NUMBER = re.compile(r"[0-9]+")
_PLAIN = re.compile(r"(.*)[/_]([0-9]+)", re.DOTALL)
_COMPBENCH = re.compile(r"(.*)_([0-9]{6}|[1-9][0-9]{6,})", re.DOTALL)
_SYNGEN = re.compile(r"(.+)_([0-9]+)", re.DOTALL)


@dataclass(frozen=True)
class Listing:
    """A folder as its readers see it.

    Attributes:
        root: the folder.
        images: paths in it.
        table: the prompt file, empty if there is none.
        folder_names: what prompts.json says, None if there is none.
    """

    root: Path
    images: tuple[PurePosixPath, ...]
    table: PromptTable
    folder_names: Mapping[str, str] | None

    def picture(self, image: PurePosixPath, row: Row | str, seed: int | None, method: str = "") -> Picture:
        """Return the picture of an image, from its row in the prompt file or its text."""
        row = row if isinstance(row, Row) else self.table.of_text(row) or Row(row, row)
        targets = template_targets(row.text) if row.targets is None else row.targets
        method = row.method or method
        return Picture(self.root / image, row.text, seed, method, row.id, targets, row.tag, row.metadata)

    def named(self, image: PurePosixPath, name: str, seed: int, place: int | None = None, method: str = "") -> "Read":
        """Return the picture whose prompt a name in its path stands for."""
        if not self.table:
            return self.picture(image, name, seed, method)
        row = self.table.match(name, place)
        if row is None:
            return Problem(self.root / image, f"{name!r} fits no prompt of {self.table.name}, or several")
        return self.picture(image, row, seed, method)


Read = Picture | Problem


def _plain(listing: Listing) -> Iterator[Read]:
    if listing.table.names_files:
        yield from _tabled(listing)
        return
    for image in listing.images:
        rows = plain_rows(listing, image)
        if len(rows) == 1:
            yield listing.picture(image, *rows[0])
        else:
            reason = "no prompt is known for it" if not rows else "two prompts have ids that fit it"
            yield Problem(listing.root / image, f"{reason} in {listing.table.name or 'a prompt file: there is none'}")


def plain_rows(listing: Listing, image: PurePosixPath) -> list[tuple[Row, int | None]]:
    """Return the rows, with the seeds, whose id an image's path begins with or is."""
    whole = image.with_suffix("").as_posix()
    match = _PLAIN.fullmatch(whole)
    ids = [(match[1], int(match[2]))] if match else []
    known = listing.table.by_id
    return [(known[name], seed) for name, seed in [*ids, (whole, None)] if name in known]


def _tabled(listing: Listing) -> Iterator[Read]:
    present, named = set(listing.images), set()
    for row in listing.table.rows:
        if row.file is None:
            yield Problem(listing.root, f"{row.where} names no file, but others do")
            continue
        image = PurePosixPath(os.path.normpath(row.file))
        if image in named:
            yield Problem(listing.root / image, f"{row.where} names it again")
        elif image in present or os.path.isfile(listing.root / image):
            yield listing.picture(image, row, row.seed)
        else:
            yield Problem(listing.root / image, f"{row.where} names it, but it is not there")
        named.add(image)
    for image in listing.images:
        if image not in named:
            yield Problem(listing.root / image, f"no prompt is known for it: {listing.table.name} does not name it")


def _geneval(listing: Listing) -> Iterator[Read]:
    folders = dict.fromkeys(image.parts[0] for image in listing.images if _of_geneval(image))
    metadata = {folder: _metadata(listing.root / folder / "metadata.jsonl") for folder in folders}
    times = Counter(facts.text for facts in metadata.values() if isinstance(facts, Row))
    for image in listing.images:
        if not _of_geneval(image):
            if image.stem != "grid":
                yield Problem(listing.root / image, "is not <number>/samples/<number>.png")
            continue
        facts = metadata[image.parts[0]]
        if isinstance(facts, Problem):
            yield facts
            continue
        known = listing.table.of_text(facts.text)
        once = known and times[facts.text] == 1 and listing.table.by_id.get(known.id) is known
        row = replace(facts, id=known.id if known and once else image.parts[0])
        if row.targets is None and known:
            row = replace(row, targets=known.targets)
        yield listing.picture(image, row, int(image.stem))


def _metadata(path: Path) -> Row | Problem:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict) or not isinstance(facts.get("prompt"), str):
            raise ValueError("must be an object with a prompt")
        targets = classes_of(facts["include"], path.name) if "include" in facts else None
        return Row(facts["prompt"], "", targets, tag=str(facts.get("tag") or ""), metadata=facts)
    except (OSError, ValueError) as error:
        return Problem(path, f"no prompt is known for its folder's images ({error})")


def _compbench(listing: Listing) -> Iterator[Read]:
    inside = [image for image in listing.images if image.parts[0] == "samples" and len(image.parts) == 2]
    places, rest = divmod(len(inside or listing.images), max(len(listing.table.rows), 1))
    for image in listing.images:
        match = _COMPBENCH.fullmatch(image.stem)
        if inside and len(image.parts) == 1 and re.search(r"-grid-[0-9]+$", image.stem):
            continue
        if not match or len(image.parts) != (2 if inside else 1):
            yield Problem(listing.root / image, "is not samples/<prompt>_<six digits>.png")
        else:
            place = int(match[2]) // places if places and not rest else None
            yield listing.named(image, match[1], int(match[2]), place)


def _attend_and_excite(listing: Listing) -> Iterator[Read]:
    folders = {image.parent.as_posix() for image in listing.images}
    for image in listing.images:
        if len(image.parts) == 1 and image.stem in folders:
            continue  # the grid of a prompt's images
        if len(image.parts) == 1 or not _NUMBER.fullmatch(image.stem):
            yield Problem(listing.root / image, "is not <prompt>/<seed>.png")
        else:
            yield _in_folder(listing, image, int(image.stem), "")


def _syngen(listing: Listing) -> Iterator[Read]:
    for image in listing.images:
        match = _SYNGEN.fullmatch(image.stem)
        if len(image.parts) == 1 or not match:
            yield Problem(listing.root / image, "is not <prompt>/<model>_<seed>.jpg")
        else:
            yield _in_folder(listing, image, int(match[2]), match[1])


def _in_folder(listing: Listing, image: PurePosixPath, seed: int, method: str) -> Read:
    """Return the picture of an image whose folder is its prompt."""
    folder = image.parent.as_posix()
    if listing.folder_names and folder in listing.folder_names:
        return listing.picture(image, listing.folder_names[folder], seed, method)
    if not listing.table and "/" in folder:
        reason = "lies two folders deep: read each method's folder alone, or give the prompts in a prompt file"
        return Problem(listing.root / image, reason)
    return listing.named(image, folder, seed, method=method)


READERS: dict[Layout, Callable[[Listing], Iterator[Read]]] = {
    "plain": _plain,
    "geneval": _geneval,
    "t2i-compbench": _compbench,
    "attend-and-excite": _attend_and_excite,
    "syngen": _syngen,
}


def fits(listing: Listing, image: PurePosixPath) -> list[Layout]:
    """Return the layouts that an image's path speaks for."""
    parent = image.parent.as_posix()
    mapped = parent in (listing.folder_names or {})
    if plain_rows(listing, image) and not mapped:
        return ["plain"]
    folder, stem, depth = image.parts[0], image.stem, len(image.parts)
    found: list[Layout] = []
    if _of_geneval(image) and (listing.root / folder / "metadata.jsonl").is_file():
        found.append("geneval")
    named = _COMPBENCH.fullmatch(stem)
    if named and (depth == 1 or (depth == 2 and folder == "samples")) and _is_prompt(listing, named[1]):
        found.append("t2i-compbench")
    if mapped or (depth > 1 and _is_prompt(listing, parent)):
        if _NUMBER.fullmatch(stem):
            found.append("attend-and-excite")
        elif _SYNGEN.fullmatch(stem):
            found.append("syngen")
    return found


def _is_prompt(listing: Listing, name: str) -> bool:
    if listing.table:
        return listing.table.match(name) is not None
    return "/" not in name and (" " in name or not name.isascii())


def _of_geneval(image: PurePosixPath) -> bool:
    number, *rest = image.parts
    return len(rest) == 2 and rest[0] == "samples" and all(_NUMBER.fullmatch(name) for name in (number, image.stem))
