"""A trace as a folder of Parquet files, and back: for readers without DuckDB, and to bring workers' traces together.

Conventions: each table is a folder; the large ones are hive-partitioned by run and sample
(``maps/run_id=1/sample=0/*.parquet``). Half-precision maps stay the bits that they are in the trace.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from shutil import rmtree
from uuid import uuid4

import duckdb

from tracer.store import Store

LARGE = ("head_stats", "maps", "maps_f16", "maps_f32")
KEYED = (
    "scores",
    "protocols",
    "readings",
    "set_scores",
    "embeddings",
    "pictures",
)  # by what they are about, not by run
SMALL = ("runs", "samples", "tokens", "layers", "calls", "solves", *KEYED)


def export_parquet(store: Store, folder: str | Path) -> None:
    """Write a trace as Parquet files; the folder appears whole or not at all.

    Raises:
        FileExistsError: there is something at `folder`.
        FileNotFoundError: its parent folder does not exist.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} must not exist yet")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"the folder of {folder} does not exist")
    draft = folder.with_name(f".{folder.name}.{uuid4().hex}")
    draft.mkdir()
    try:
        with closing(store.cursor()) as cursor:
            for table in SMALL:
                (draft / table).mkdir()
                cursor.table(table).write_parquet(str(draft / table / "0.parquet"), compression="zstd")
            for table in LARGE:
                (draft / table).mkdir()
                if cursor.table(table).limit(1).fetchall():
                    cursor.table(table).write_parquet(
                        str(draft / table), compression="zstd", partition_by=["run_id", "sample"], overwrite=True
                    )
        draft.rename(folder)
    finally:
        rmtree(draft, ignore_errors=True)


def import_parquet(folders: str | Path | Sequence[str | Path], trace: str | Path) -> list[int]:
    """Add exported traces to a trace file, whole or not at all, and return their new run numbers.

    The file may be new. Runs are numbered on after those that are there. A score that is there already is kept.

    Raises:
        FileNotFoundError: a folder holds no exported trace, or the trace's own folder does not exist.
    """
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    for folder in given:
        if not (Path(folder) / "runs" / "0.parquet").is_file():
            raise FileNotFoundError(f"{folder} is no exported trace: it has no runs/0.parquet")
    added: list[int] = []
    with Store.create(trace) as store, closing(store.cursor()) as cursor:
        cursor.begin()  # closed without commit it rolls back
        for folder in given:
            added += _added(cursor, Path(folder))
        cursor.commit()
    return added


def _added(cursor: duckdb.DuckDBPyConnection, folder: Path) -> list[int]:
    """Insert one folder's tables."""
    last = cursor.execute("SELECT coalesce(max(run_id), 0) FROM runs").fetchall()[0][0]
    files = str(folder / "runs" / "*.parquet")
    old = cursor.execute("SELECT run_id FROM read_parquet(?) ORDER BY run_id", [files]).fetchall()
    cursor.execute("CREATE OR REPLACE TEMP TABLE renumbered (run_id UINTEGER, new_id UINTEGER)")
    numbers = {number: last + 1 + place for place, (number,) in enumerate(old)}
    if numbers:
        cursor.executemany("INSERT INTO renumbered VALUES (?, ?)", list(numbers.items()))
    for table in (*SMALL, *LARGE):
        if not any((folder / table).rglob("*.parquet")):
            continue
        source = [str(folder / table / "**" / "*.parquet")]
        if table in KEYED:
            cursor.execute(f"INSERT OR IGNORE INTO {table} BY NAME FROM read_parquet(?)", source)
            continue
        # table names are our own constants; a statement takes them in no other way
        cursor.execute(
            f"INSERT INTO {table} BY NAME SELECT * EXCLUDE (new_id) REPLACE (new_id AS run_id) "
            "FROM read_parquet(?, hive_partitioning = true) JOIN renumbered USING (run_id)",
            source,
        )
    return list(numbers.values())
