"""Scores of images, beside the trace or in a file of their own: the rows, and how they are written.

Conventions: an image is known by its SHA-256 (`tracer.pictures.digest`), a protocol by its fingerprint. What is there
stays: a row whose key is there is left out, so that the same work done twice changes no bit. `schema.sql` says what the
columns mean.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from tracer.store import Store

_TYPES = {
    "scores": [
        *((name, pa.string()) for name in ("image_sha256", "protocol", "metric", "target", "against")),
        *(("value", pa.float64()), ("query", pa.string()), ("box", pa.list_(pa.float32()))),
    ],
    "set_scores": [
        *((name, pa.string()) for name in ("set_sha256", "reference_sha256", "protocol", "metric")),
        *((name, pa.float64()) for name in ("value", "low", "high")),
        *(("n", pa.uint32()), ("n_reference", pa.uint32()), ("warnings", pa.list_(pa.string()))),
    ],
    "pictures": [
        *((name, pa.string()) for name in ("path", "method", "prompt_id", "prompt")),
        *(("seed", pa.int64()), ("targets", pa.list_(pa.string())), ("tag", pa.string()), ("metadata", pa.string())),
        *(("bytes", pa.uint64()), ("changed_ns", pa.int64()), ("width", pa.uint32()), ("height", pa.uint32())),
        *(("image_sha256", pa.string()), ("notes", pa.list_(pa.string())), ("error", pa.string())),
    ],
}


@dataclass(frozen=True)
class ScoreRow:
    """One number about one image under a protocol; the table `scores` says what `target` and `against` are."""

    image_sha256: str
    protocol: str
    metric: str
    value: float
    target: str = ""
    against: str = ""
    query: str | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class SetScoreRow:
    """One number about a set of images beside a reference set."""

    set_sha256: str
    reference_sha256: str
    protocol: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    n_reference: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProtocolRow:
    """What a fingerprint stands for."""

    protocol: str
    kind: str
    world: str
    facts: Mapping[str, object]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class ReadingRow:
    """How a protocol's detections are read."""

    name: str
    protocol: str
    threshold: float
    assignment: str


@dataclass(frozen=True)
class PictureRow:
    """An image file, what it shows and, once it was read, what it is."""

    path: str
    method: str
    prompt: str
    seed: int | None = None
    prompt_id: str = ""
    targets: tuple[str, ...] = ()
    tag: str = ""
    metadata: str = "{}"  # JSON
    bytes: int | None = None
    changed_ns: int | None = None
    width: int | None = None
    height: int | None = None
    image_sha256: str | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Written:
    """What one step of scoring found, for one transaction; vectors by (item, protocol)."""

    scores: Sequence[ScoreRow] = ()
    vectors: Mapping[tuple[str, str], Float32[np.ndarray, " channel"]] = field(default_factory=dict)
    pictures: Sequence[PictureRow] = ()


def add_scores(store: Store, scores: Sequence[ScoreRow], replace: bool = False) -> None:
    """Write numbers about images.

    Args:
        store: open for writing.
        scores: the rows.
        replace: let a new row take an old one's place, as for a person's verdict that was mended.
    """
    with store.transaction() as cursor:
        _put(cursor, "scores", [asdict(row) for row in scores], replace)


def write(store: Store, written: Written) -> None:
    """Write what one step of scoring found, all of it or nothing; pictures take their former rows' place."""
    with store.transaction() as cursor:
        _put(cursor, "scores", [vars(row) for row in written.scores])
        _put(cursor, "pictures", [vars(row) for row in written.pictures], replace=True)
        if written.vectors:
            items, protocols = zip(*written.vectors, strict=True)
            vectors = pa.array(list(written.vectors.values()), pa.list_(pa.float32()))
            table = pa.table({"item": items, "protocol": protocols, "vector": vectors})
            _insert(cursor, "embeddings", table, "IGNORE")


def add_protocols(store: Store, protocols: Sequence[ProtocolRow], readings: Sequence[ReadingRow] = ()) -> None:
    """Note what fingerprints stand for, and how detections are read; new ones take old ones' place."""
    rows = [asdict(row) for row in protocols]
    rows = [row | {name: json.dumps(row[name], sort_keys=True) for name in ("facts", "versions")} for row in rows]
    with store.transaction() as cursor:
        for table, new in (("protocols", rows), ("readings", [asdict(row) for row in readings])):
            if new:
                _insert(cursor, table, pa.Table.from_pylist(new), "REPLACE")


def add_set_scores(store: Store, scores: Sequence[SetScoreRow]) -> None:
    """Write numbers about sets of images."""
    with store.transaction() as cursor:
        _put(cursor, "set_scores", [asdict(row) for row in scores])


def pictures_in(store: Store) -> dict[tuple[str, str], PictureRow]:
    """Return the image files that the store knows, by path and method."""
    columns = ", ".join(f"{name}::VARCHAR" if name == "metadata" else name for name in PictureRow.__dataclass_fields__)
    with closing(store.cursor()) as cursor:
        found = cursor.execute(f"SELECT {columns} FROM pictures").fetchall()
    rows = [_picture(values) for values in found]
    return {(row.path, row.method): row for row in rows}


def local_path(store: Store, path: Path) -> str:
    """Return how the store names a file: from its own folder if the file lies below it, else absolute."""
    folder, name = os.path.abspath(store.path.parent), os.path.abspath(path)
    return name.removeprefix(os.path.join(folder, ""))


def _picture(values: Sequence[Any]) -> PictureRow:
    plain: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
    return PictureRow(*plain)


def _put(
    cursor: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Mapping[str, object]], replace: bool = False
) -> None:
    if rows:
        _insert(
            cursor,
            table,
            pa.Table.from_pylist(list(rows), pa.schema(_TYPES[table])),
            "REPLACE" if replace else "IGNORE",
        )


def _insert(cursor: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, rule: str) -> None:
    cursor.register("new_rows", rows)
    cursor.execute(f"INSERT OR {rule} INTO {table} BY NAME FROM new_rows")
    cursor.unregister("new_rows")
