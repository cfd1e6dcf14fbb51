"""Traces of many workers brought together in one file, each exactly once."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import duckdb

from tracer.database import attach
from tracer.parquet import LARGE
from tracer.store import Store

BY_RUN = ("samples", "tokens", "layers", "calls", "solves", *LARGE)


@dataclass(frozen=True)
class Part:
    """A worker's trace of one run.

    Attributes:
        path: of the file.
        method: as the store is to call what made the images; None to leave what the trace calls it.
    """

    path: Path
    method: str | None = None


def merge(store: Store, traces: Mapping[str, Part]) -> dict[str, int]:
    """Add traces of one run each to a store, and return each one's new run number.

    A trace is known by its name, which the column ``runs.spec_hash`` keeps: one that was added before is not added
    again, and need not be there any more. Each is added in a transaction.

    Args:
        store: open for writing.
        traces: by name, added in this order.

    Raises:
        FileNotFoundError: a trace that is not in the store yet is not there.
        ValueError: a file is no trace, or holds not one run.
    """
    known = store.sql("SELECT spec_hash, run_id FROM runs").set_index("spec_hash")["run_id"].to_dict()
    for name, part in traces.items():
        if name not in known:
            if not part.path.is_file():
                raise FileNotFoundError(f"there is no trace at {part.path}")
            known[name] = _added(store, name, part)
    return {name: int(known[name]) for name in traces}


def _added(store: Store, name: str, part: Part) -> int:
    with closing(store.cursor()) as cursor:
        attach(cursor, part.path, "part")
    try:
        with store.transaction() as cursor:
            (count,) = _row(cursor, "SELECT count(*) FROM part.runs")
            if count != 1:
                raise ValueError(f"{part.path} must hold one run, got {count}")
            (number,) = _row(cursor, "SELECT coalesce(max(run_id), 0) + 1 FROM runs")
            cursor.execute(
                "INSERT INTO runs BY NAME SELECT * REPLACE (?::UINTEGER AS run_id, ? AS spec_hash, "
                "coalesce(?, method) AS method) FROM part.runs",
                [number, name, part.method],
            )
            for table in BY_RUN:  # our own names; a statement takes them in no other way
                cursor.execute(
                    f"INSERT INTO {table} BY NAME SELECT * REPLACE (?::UINTEGER AS run_id) FROM part.{table}", [number]
                )
    finally:
        with closing(store.cursor()) as cursor:
            cursor.execute("DETACH part")
    return int(number)


def _row(cursor: duckdb.DuckDBPyConnection, query: str) -> tuple[int, ...]:
    return cursor.execute(query).fetchall()[0]
