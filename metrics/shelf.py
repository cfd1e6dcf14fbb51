"""Image files on their way to being scored: which are known already, what belongs to what, and who is read when.

Conventions: a file that has the size and time of change that the store noted is the image that the store noted, and is
not read again. A batch holds images of one size and one number of targets, in the order of the folder; it is worked on
as a whole, so that work that was interrupted and resumed gives the same bits as work that was not.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from metrics.decoding import BadImage, Decoded, read, strictly
from metrics.evaluator import Item
from metrics.pictures import Picture
from tracer.pictures import digest
from tracer.scores import PictureRow, local_path, pictures_in
from tracer.store import Store


@dataclass(frozen=True)
class Entry:
    """A picture, what the store knows of its file, and the plain picture it is compared with."""

    picture: Picture
    row: PictureRow
    known: bool  # the store has this row
    reference: "Entry | None" = None

    @property
    def item(self) -> Item:
        """What is to be scored, without its pixels."""
        reference = self.reference.item if self.reference else None
        sha256, facts = self.row.image_sha256 or "", self.row.metadata
        return Item(sha256, self.picture.prompt, self.picture.targets, None, reference, facts)

    @property
    def read(self) -> bool:
        """Whether the image's hash is known, and its reference's."""
        return self.row.image_sha256 is not None and (self.reference is None or self.reference.read)


def entries_of(store: Store, pictures: Sequence[Picture], baseline: str | None = None) -> list[Entry]:
    """Return pictures with what is known of them.

    Args:
        store: holds the table `pictures`.
        pictures: all different files.
        baseline: the method whose image of the same prompt and seed every other one is compared with.
    """
    known = pictures_in(store)
    files = {row.path: row for row in known.values()}
    entries = [_entry(store, picture, known, files) for picture in pictures]
    plain = {_key(entry.picture): entry for entry in entries if entry.picture.method == baseline}
    return [
        replace(entry, reference=plain.get(_key(entry.picture))) if entry.picture.method != baseline else entry
        for entry in entries
    ]


def batches(entries: Sequence[Entry], pixels: int, most: int) -> list[list[Entry]]:
    """Return entries of one image size and one number of targets together, at most `most` of so many pixels in all."""
    kinds: dict[object, list[Entry]] = {}
    for entry in entries:
        kinds.setdefault((entry.row.width, entry.row.height, len(entry.picture.targets)), []).append(entry)
    parts = []
    for kind in kinds.values():
        area = max(1, (kind[0].row.width or 0) * (kind[0].row.height or 0))
        size = max(1, min(most, pixels // area))
        parts += [kind[start : start + size] for start in range(0, len(kind), size)]
    return parts


def opened(
    parts: Sequence[Sequence[Entry]], reads: Sequence[bool], workers: int
) -> Iterator[list[tuple[Entry, Item | None]]]:
    """Yield every part's entries with their images, the next part being read by other threads meanwhile.

    An entry whose file could not be read comes with its error and without an item.

    Args:
        parts: from `batches`.
        reads: of each part, whether its pixels are needed.
        workers: threads.
    """
    with strictly(), ThreadPoolExecutor(max(workers, 1)) as pool:
        ahead: deque[list[Future[tuple[Entry, Item | None]]]] = deque()
        for part, pixels in zip(parts, reads, strict=True):
            ahead.append([pool.submit(_read if pixels else _unread, entry) for entry in part])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]


def _key(picture: Picture) -> tuple[str, int | None]:
    return picture.prompt, picture.seed


def _entry(
    store: Store, picture: Picture, known: Mapping[tuple[str, str], PictureRow], files: Mapping[str, PictureRow]
) -> Entry:
    stat = picture.path.stat()
    row = PictureRow(
        local_path(store, picture.path),
        picture.method,
        picture.prompt,
        picture.seed,
        picture.prompt_id,
        picture.targets,
        picture.tag,
        json.dumps(dict(picture.metadata), sort_keys=True),
        stat.st_size,
        max(stat.st_mtime_ns, stat.st_ctime_ns),  # other content under a time that was set back is seen too
    )
    former = known.get((row.path, row.method)) or files.get(row.path)
    if former is None or (former.bytes, former.changed_ns) != (row.bytes, row.changed_ns):
        width, height = _size(picture.path)
        return Entry(picture, replace(row, width=width, height=height), known=False)
    learned = ("width", "height", "image_sha256", "notes", "error")
    row = replace(row, **{name: getattr(former, name) for name in learned})
    return Entry(picture, row, known=row == former)


def _size(path: Path) -> tuple[int, int]:
    """Return what the file's head says; (0, 0) of one that is none, and reading it will say why."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # whatever a broken file makes of Pillow
        return 0, 0


def _unread(entry: Entry) -> tuple[Entry, Item | None]:
    return entry, None if entry.row.error else entry.item


def _read(entry: Entry) -> tuple[Entry, Item | None]:
    try:
        own, sha256 = _decoded(entry)
    except BadImage as error:
        return replace(entry, row=replace(entry.row, error=str(error))), None
    entry = replace(entry, row=replace(entry.row, image_sha256=sha256, notes=own.notes, error=None))
    reference = None
    if entry.reference:
        try:
            plain, plain_sha256 = _decoded(entry.reference)
            reference = Item(plain_sha256, entry.picture.prompt, image=plain.image)
        except BadImage:  # it says so itself, in its own place
            pass
    return entry, replace(entry.item, image=own.image, reference=reference)


def _decoded(entry: Entry) -> tuple[Decoded, str]:
    made = read(entry.picture.path)
    return made, digest(made.image)
