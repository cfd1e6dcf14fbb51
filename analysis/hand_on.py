"""Scored images and their results, in the layout and the files of another project."""

import json
from collections.abc import Mapping
from pathlib import Path

from metrics.clip_score import halves
from metrics.layout_writers import ClipResult, GenevalResult, write_attend_and_excite, write_geneval
from metrics.pictures import Picture
from tracer.scores import PictureRow, pictures_in
from tracer.store import Store


def hand_on(store: Store, out: Path, layout: str, method: str | None = None) -> None:
    """Write one method's pictures and results.

    GenEval's results.jsonl gets whether all targets were found by our detector, and where: another detector than
    GenEval's own, so the numbers are not GenEval's. Attend-and-Excite's files get the cosines with prompt and halves.
    Results are left out where the store has none.

    Args:
        store: holds the pictures.
        out: the folder to make.
        layout: "geneval" or "attend-and-excite".
        method: of which; None if there is one only.

    Raises:
        ValueError: the method is unknown or one of several, the results are of several protocols, or as in the writers.
    """
    rows = _rows_of(store, method)
    pictures = [_picture(store, row) for row in rows]
    if layout == "geneval":
        write_geneval(out, pictures, _found(store, rows, pictures))
    elif layout == "attend-and-excite":
        write_attend_and_excite(out, pictures, _cosines(store, rows, pictures))
    else:
        raise ValueError(f"layout must be geneval or attend-and-excite, got {layout!r}")


def _rows_of(store: Store, method: str | None) -> list[PictureRow]:
    rows = [row for row in pictures_in(store).values() if row.image_sha256 and row.prompt]
    methods = sorted({row.method for row in rows})
    if method is None and len(methods) == 1:
        method = methods[0]
    if method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods) or 'none, as nothing was scored'}, got {method!r}")
    return [row for row in rows if row.method == method]


def _picture(store: Store, row: PictureRow) -> Picture:
    path = store.path.resolve().parent / row.path
    facts = json.loads(row.metadata)
    return Picture(path, row.prompt, row.seed, row.method, row.prompt_id, row.targets, row.tag, facts)


def _found(store: Store, rows: list[PictureRow], pictures: list[Picture]) -> Mapping[Path, GenevalResult] | None:
    verdicts = store.sql(
        "SELECT image_sha256, protocol, against, target, found, box FROM verdicts WHERE score IS NOT NULL"
    )
    if (protocols := verdicts["protocol"].unique()).size > 1:
        raise ValueError(f"results must be of one reading, the store has {', '.join(protocols)}")
    by_image = dict(iter(verdicts.groupby(["image_sha256", "against"])))
    results = {}
    for row, picture in zip(rows, pictures, strict=True):
        mine = by_image.get((row.image_sha256, ", ".join(sorted(row.targets))))
        if mine is None:
            return None
        missing = [str(target) for target, found in zip(mine["target"], mine["found"], strict=True) if not found]
        seen = mine[mine["found"]]
        boxes = {str(t): [[float(edge) for edge in box]] for t, box in zip(seen["target"], seen["box"], strict=True)}
        results[picture.path] = GenevalResult(not missing, "; ".join(f"no {name}" for name in missing), boxes)
    return results


def _cosines(store: Store, rows: list[PictureRow], pictures: list[Picture]) -> Mapping[Path, ClipResult] | None:
    columns = "image_sha256, protocol, metric, target, against, value"
    scores = store.sql(
        f"SELECT {columns} FROM scores WHERE protocol IN (SELECT protocol FROM scores WHERE metric = 'clip_half')"
    )
    if (protocols := scores["protocol"].unique()).size > 1:
        raise ValueError(f"results must be of one protocol, the store has {', '.join(protocols)}")
    known = {(s.image_sha256, s.against, s.target): s.value for s in scores.itertuples()}
    results = {}
    for row, picture in zip(rows, pictures, strict=True):
        whole = known.get((row.image_sha256, row.prompt, ""))
        if whole is None:
            return None
        parts = [known.get((row.image_sha256, row.prompt, part)) for part in halves(row.prompt) or ()]
        results[picture.path] = ClipResult(whole, *parts)
    return results
