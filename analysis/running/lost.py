"""Images that are gone, damaged or changed since they were made: they are made again, and their scores are not shown.

Conventions: before anything is made, each file's two ends are looked at; all pixels are compared where scoring has read
them anyway.
"""

import os
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from analysis.running.ledger import forget, rows_of
from analysis.running.missing import Incomplete
from tracer.scores import local_path, pictures_in
from tracer.store import Store

HEAD, END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def forget_lost(run: Path, keys: Collection[str]) -> list[str]:
    """Drop the records of units of which an image is gone or cut short, and return a line on each: it is to be made.

    Args:
        run: folder of the run.
        keys: of the units that are looked at.
    """
    rows = rows_of(run)
    lines: dict[str, str] = {}
    for row in rows[rows["unit"].isin(list(keys))].itertuples(index=False):
        if row.unit not in lines and not is_whole(run / row.image):
            lines[row.unit] = f"{row.method} on {row.prompt!r}: {row.image} is gone or damaged"
    forget(run, lines)
    return list(lines.values())


def is_whole(path: Path) -> bool:
    """Return whether a PNG file is there from its beginning to its end."""
    try:
        with path.open("rb") as file:
            head = file.read(len(HEAD))
            file.seek(-len(END), os.SEEK_END)
            return head == HEAD and file.read() == END
    except OSError:
        return False


def refuse_changed(run: Path, store: Store, images: pd.DataFrame) -> None:
    """Take away the images of which scoring has read other pixels than were made; the next call makes them again.

    Args:
        run: folder of the run.
        store: in which they were scored.
        images: columns method, image and image_sha256, as the ledger has it.

    Raises:
        Incomplete: there are some.
    """
    known = pictures_in(store)
    seen = [known[local_path(store, run / row.image), row.method].image_sha256 for row in images.itertuples()]
    changed = images.loc[images["image_sha256"] != pd.Series(seen, images.index, dtype=object), "image"].tolist()
    for path in changed:
        (run / path).unlink(missing_ok=True)
    if changed:
        raise Incomplete(
            f"{len(changed)} images are not as they were made, the first {changed[0]}; they were taken away, and the "
            "same command makes them again"
        )
