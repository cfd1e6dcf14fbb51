"""Layouts as files: DenseDiffusion's own sets, and a folder of ours.

Conventions: ids are text. Layouts are read one after the other, as masks are large. What is broken in a set of others
is left out with a warning that names the item and the reason; what is broken in a folder of ours is an error.
Ours: ``layouts.json`` (ids, prompts, phrases) and for its first entry ``00000.png``, and so on: PNG with a palette,
whose indices are the segments' numbers from 1, 0 for no segment.
DenseDiffusion's: a flat-coloured ``<id>.png`` for each item; white is the background and has the first description,
the other colours have the other descriptions by descending area.
Source: https://github.com/naver-ai/DenseDiffusion, ``inference.ipynb`` and ``dataset/`` at 54a2ea6
"""

import gzip
import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from colorsys import hsv_to_rgb
from itertools import pairwise
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from warnings import warn

import numpy as np
import torch
from jaxtyping import UInt8, UInt32
from PIL import Image

from regulate.layout import Layout, Segment
from regulate.plain_pickles import read_pickle

INDEX = "layouts.json"
FORMAT = "attnreg layouts 1"
MOST_BYTES = 64 * 2**20  # of a file, and of an archive when unpacked
MOST_PIXELS = 4096 * 4096
MOST_SEGMENTS = 255  # a palette's colours but one
WHITE = (255, 255, 255)
_PICKLED = ("id", "textual_condition", "segment_descriptions")


class Laid(NamedTuple):
    """A prompt and where its phrases are to be seen."""

    id: str
    caption: str
    layout: Layout


class _Item(NamedTuple):
    id: str
    caption: str
    phrases: tuple[str, ...]


def read_coco250(descriptions: Path, images: Path) -> Iterator[Laid]:
    """Return DenseDiffusion's items with their layouts, in order, each read when it is asked for.

    Warns of each item that is left out: whose picture is missing or no picture, has not one colour for each
    description, or two segments of one area, so that nobody knows which is which.

    Args:
        descriptions: ``.json``, a list of ``id``, ``caption`` and ``segments``; or ``.pkl``, as DenseDiffusion has it.
        images: a folder that holds ``<id>.png``, or a ``.tar.gz`` of such a folder.

    Raises:
        ValueError: a file is not of these formats or too large, the archive holds links or paths that lead out of it,
            an id comes twice, or there is none of the pictures.
    """
    if descriptions.suffix == ".pkl":
        items = _items(_numbered(read_pickle(descriptions)), _PICKLED, descriptions)
    else:
        items = _items(_json(descriptions), ("id", "caption", "segments"), descriptions)
    pictures = {path.stem: path for path in images.glob("*.png")} if images.is_dir() else _archive(images)
    if not any(item.id in pictures for item in items):
        raise ValueError(f"{images} must hold pictures such as {items[0].id}.png, got none of them")
    return _read(items, pictures)


def convert(descriptions: Path, images: Path, folder: Path) -> int:
    """Write DenseDiffusion's set as a folder of ours, whole or not at all, and return how many layouts it holds.

    Args:
        descriptions: see `read_coco250`.
        images: see `read_coco250`.
        folder: where to; it must not exist.

    Raises:
        FileExistsError: the folder exists.
        ValueError: as in `read_coco250`.
    """
    return save_layouts(folder, read_coco250(descriptions, images))


def save_layouts(folder: Path, layouts: Iterable[Laid]) -> int:
    """Write layouts as `load_layouts` reads them, whole or not at all, and return how many.

    Raises:
        FileExistsError: the folder exists.
        ValueError: there is no layout, an id comes twice, or a layout has more than 255 segments.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; layouts are written into a new folder")
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as kept:
        whole = Path(kept) / "whole"
        whole.mkdir()
        entries: list[dict[str, Any]] = []
        for number, laid in enumerate(layouts):
            _indexed(laid).save(whole / _name(number))
            entries.append({"id": laid.id, "caption": laid.caption, "phrases": laid.layout.phrases})
        if not entries:
            raise ValueError("layouts must be one or more, got none")
        _check_once([entry["id"] for entry in entries], folder)
        text = json.dumps({"format": FORMAT, "layouts": entries}, ensure_ascii=False, indent=1)
        (whole / INDEX).write_text(text + "\n", encoding="utf-8")
        whole.rename(folder)
    return len(entries)


def load_layouts(folder: Path) -> Iterator[Laid]:
    """Return a folder's layouts in order, each read when it is asked for.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing.
        ValueError: a file of it is not as `save_layouts` writes it.
    """
    path = folder / INDEX
    index = _json(path)
    if not isinstance(index, dict) or index.get("format") != FORMAT or not isinstance(index.get("layouts"), list):
        raise ValueError(f'{path} must be an object with "format": "{FORMAT}" and a list "layouts"')
    items = _items(index["layouts"], ("id", "caption", "phrases"), path)
    return (_loaded(folder / _name(number), item) for number, item in enumerate(items))


def _read(items: list[_Item], pictures: Mapping[str, Path | bytes]) -> Iterator[Laid]:
    for item in items:
        try:
            if item.id not in pictures:
                raise ValueError("its picture is missing")
            found = pictures[item.id]
            layout = _flat(_png(found if isinstance(found, bytes) else _bytes(found)), item.phrases)
        except ValueError as error:
            warn(f"item {item.id} is left out: {error}", stacklevel=2)
        else:
            yield Laid(item.id, item.caption, layout)


def _flat(image: Image.Image, phrases: tuple[str, ...]) -> Layout:
    """Return the layout of a flat-coloured picture."""
    colours: Any = image.convert("RGB").getcolors(MOST_SEGMENTS + 1)
    if colours is None:
        raise ValueError(f"its picture must be of flat colours, got more than {MOST_SEGMENTS + 1} of them")
    if len(colours) != len(phrases):
        raise ValueError(f"its picture must have a colour for each of {len(phrases)} segments, got {len(colours)}")
    if WHITE not in [colour for _, colour in colours]:
        raise ValueError("its picture must show the background in white, got no white")
    others = sorted((entry for entry in colours if entry[1] != WHITE), reverse=True)
    if any(one[0] == next_[0] for one, next_ in pairwise(others)):
        raise ValueError("its segments must differ in area, got two of one area: which is which is not known")
    pixels = _codes(np.asarray(image.convert("RGB")))
    codes = _codes(np.array([WHITE, *(colour for _, colour in others)], dtype=np.uint8))
    shown = [torch.from_numpy(pixels == code) for code in codes]
    return Layout(tuple(map(Segment, phrases, shown)))


def _codes(colours: UInt8[np.ndarray, "*shape 3"]) -> UInt32[np.ndarray, "*shape"]:
    """Return each colour as one number."""
    red, green, blue = np.moveaxis(colours.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def _loaded(path: Path, item: _Item) -> Laid:
    try:
        image = _png(_bytes(path))
        if image.mode != "P":
            raise ValueError(f"it must have a palette, got mode {image.mode}")
        numbers = torch.from_numpy(np.array(image))
        if numbers.max() > len(item.phrases):
            raise ValueError(f"it must have the {len(item.phrases)} segments of {INDEX}, got number {numbers.max()}")
        layout = Layout(tuple(Segment(phrase, numbers == n) for n, phrase in enumerate(item.phrases, 1)))
    except ValueError as error:
        raise ValueError(f"{path} must be the layout of {item.id!r}: {error}") from error
    return Laid(item.id, item.caption, layout)


def _indexed(laid: Laid) -> Image.Image:
    """Return a layout as a picture whose palette's indices are the segments' numbers."""
    layout = laid.layout
    if len(layout.segments) > MOST_SEGMENTS:
        raise ValueError(
            f"a layout must have at most {MOST_SEGMENTS} segments, got {len(layout.segments)} of {laid.id}"
        )
    numbers = np.zeros(layout.size, dtype=np.uint8)
    for number, segment in enumerate(layout.segments, 1):
        numbers[segment.mask.numpy()] = number
    image = Image.fromarray(numbers)
    image.putpalette(_palette(len(layout.segments)))
    return image


def _palette(count: int) -> bytes:
    """Return white for no segment, then colours easily told apart: hues a golden section from each other."""
    hues = [hsv_to_rgb(0.618034 * number % 1, 0.65, 0.9) for number in range(count)]
    return bytes(round(255 * part) for colour in ((1.0, 1.0, 1.0), *hues) for part in colour)


def _name(number: int) -> str:
    return f"{number:05}.png"


def _numbered(found: Any) -> Any:
    """Return a dict of items as a list whose items know their keys; a list's are its places."""
    if isinstance(found, dict | list):
        pairs = found.items() if isinstance(found, dict) else enumerate(found)
        return [{**entry, "id": key} if isinstance(entry, dict) else entry for key, entry in pairs]
    return found


def _items(found: Any, names: tuple[str, str, str], where: Path) -> list[_Item]:
    """Return the entries of a list, in which id, caption and phrases have these names."""
    if not isinstance(found, list) or not found:
        raise ValueError(f"{where} must hold one or more items, got {found!r:.100}")
    items: list[_Item] = []
    for entry in found:
        own, caption, phrases = map(entry.get, names) if isinstance(entry, dict) else (None, None, None)
        is_id = isinstance(own, str | int) and not isinstance(own, bool)
        is_list = isinstance(phrases, list) and len(phrases) > 0 and all(isinstance(phrase, str) for phrase in phrases)
        if not (is_id and isinstance(caption, str) and isinstance(phrases, list) and is_list):
            raise ValueError(
                f"{where}: an item must have {', '.join(names)}: id, text, list of texts, got {entry!r:.200}"
            )
        items.append(_Item(str(own), caption, tuple(phrases)))
    _check_once([item.id for item in items], where)
    return items


def _check_once(ids: list[str], where: Path) -> None:
    twice = [own for own, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: an id must be unique, got {', '.join(map(repr, twice))} more than once")


def _json(path: Path) -> Any:
    try:
        return json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}") from error


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} must have at most {MOST_BYTES:,} bytes, got {path.stat().st_size:,}")
    return path.read_bytes()


def _png(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"at most {MOST_PIXELS:,} pixels are read, got {opened.width} x {opened.height}")
            opened.load()
            return opened
    except Exception as error:  # PIL's readers raise anything on bad bytes: SyntaxError, struct.error, KeyError
        raise ValueError(f"its picture must be a PNG: {error or type(error).__name__}") from error


def _archive(path: Path) -> dict[str, bytes]:
    """Return the PNGs of an archive by their names without ending; it is unpacked in memory, up to a bound."""
    pictures: dict[str, bytes] = {}
    try:
        with gzip.open(path) as packed:
            unpacked = packed.read(MOST_BYTES + 1)
        if len(unpacked) > MOST_BYTES:
            raise ValueError(f"{path} must unpack to at most {MOST_BYTES:,} bytes, got more")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                plain = member.isdir() or (member.isfile() and not member.issparse())  # holes are filled when read
                if name.is_absolute() or ".." in name.parts or not plain:
                    raise ValueError(f"{path} must hold files and folders inside itself, got {member.name!r}")
                content = archive.extractfile(member) if name.suffix == ".png" else None
                if content is not None:
                    if name.stem in pictures:
                        raise ValueError(f"{path} must hold a picture once, got another {name.name}")
                    pictures[name.stem] = content.read()
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{path} must be a .tar.gz: {error}") from error
    return pictures
