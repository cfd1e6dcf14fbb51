"""The trace store: a DuckDB file of runs, words, passes, statistics and maps. Only this file changes it.

    with Store.create("run.duckdb") as store:      # new or existing, read and write
        ...
    with Store.open("run.duckdb") as store:        # read-only, any number of processes
        store.sql("SELECT step, word, share FROM dominance WHERE layer = ?", [3])

One process at a time may write a file, and meanwhile no other can read it; inside the writing process every
thread reads through `Store.sql` or its own `Store.cursor`. `schema.sql` says what tables and views hold.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from os import link
from pathlib import Path
from uuid import uuid4

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float32

from tracer.rows import (
    Branch,
    Capture,
    Pass,
    Phase,
    RunRow,
    SampleRow,
    ScoreRow,
    SolveRow,
    Status,
    token_rows,
)
from tracer.words import Token

SCHEMA_VERSION = "1"
# Rows are few and heavy: DuckDB's own row groups (122,880) would rewrite every map two to three times over.
# The file does not remember this, so it is given each time.
WRITING = "ROW_GROUP_SIZE 2048"
NEW = f"{WRITING}, STORAGE_VERSION 'v1.4.0'"  # read by DuckDB 1.4 and later; 2.0's own default only by 2.0
READING = "READ_ONLY"


class Store:
    """A trace file, open for reading or for both."""

    def __init__(self, path: Path, options: str):
        """Attach an existing file; use `create` or `open`."""
        self.path = path
        self._lock = threading.Lock()
        self._connection = _attached(path, options)

    @classmethod
    def create(cls, path: str | Path) -> "Store":
        """Return the store at `path`, to read and write; a new file appears with its schema or not at all.

        Raises:
            FileNotFoundError: the folder does not exist.
            ValueError: the file is there and is no trace, or one of another schema version.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder of {path} does not exist")
        if not path.exists():
            _build(path)
        return cls(path, WRITING)

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Return the store at `path`, read-only.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no trace, or one of another schema version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no trace at {path}")
        return cls(path, READING)

    def __enter__(self) -> "Store":
        """Return the store itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; other processes may open it then."""
        self._connection.close()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Return a connection of one's own to the open file; the caller closes it. One per thread."""
        with self._lock:
            cursor = self._connection.cursor()
        cursor.execute("USE trace")
        return cursor

    def sql(self, query: str, params: Sequence[object] | Mapping[str, object] | None = None) -> pd.DataFrame:
        """Return the query's whole result; `params` are bound to its ``?`` or ``$name``."""
        # A cursor for each query: a result that nobody read to its end would block the next one.
        with closing(self.cursor()) as cursor:
            return cursor.execute(query, params).df()

    def add_run(self, run: RunRow, capture: Capture) -> int:
        """Write a run of status 'running' and return its number."""
        row = asdict(run) | {"created_at": datetime.now(UTC).replace(tzinfo=None), "status": "running"}
        row |= {"capture": asdict(capture) | {"tokens": "all"}, "dropped_maps": 0}
        with self._transaction() as cursor:
            last = cursor.execute("SELECT coalesce(max(run_id), 0) FROM runs").fetchall()[0][0]
            _insert(cursor, "runs", [_as_json(row, "method_params", "versions", "capture")], last + 1)
        return last + 1

    def add_samples(
        self,
        run_id: int,
        samples: Sequence[SampleRow],
        tokens: Sequence[Sequence[Token]],
        uncond_tokens: Sequence[Sequence[Token]] = (),
    ) -> None:
        """Write images to be made, and the tokens of their prompts and, where given, negative prompts."""
        rows = [_as_json(asdict(sample), "targets") for sample in samples]
        pieces = [row for s, t in zip(samples, tokens, strict=True) for row in token_rows(s, "cond", t)]
        if uncond_tokens:
            pieces += [row for s, t in zip(samples, uncond_tokens, strict=True) for row in token_rows(s, "uncond", t)]
        with self._transaction() as cursor:
            _insert(cursor, "samples", rows, run_id)
            _insert(cursor, "tokens", pieces, run_id)

    def add_pass(self, run_id: int, recorded: Pass) -> None:
        """Write what one pass of the model recorded, all of it in one transaction."""
        layers = [asdict(layer) | {"block": layer.block, "block_idx": layer.block_idx} for layer in recorded.layers]
        maps = "maps" if "q" in recorded.maps.column_names else "maps_f32"
        with self._transaction() as cursor:
            _insert(cursor, "layers", layers, run_id)
            _insert(cursor, "calls", [asdict(call) for call in recorded.calls], run_id)
            _insert(cursor, "head_stats", recorded.stats, run_id)
            _insert(cursor, maps, recorded.maps, run_id)

    def add_images(self, run_id: int, images: Mapping[int, tuple[str, str]]) -> None:
        """Note each sample's finished image: its SHA-256 and its path."""
        with self._transaction() as cursor:
            for sample, (sha256, path) in images.items():
                where = [sha256, path, run_id, sample]
                cursor.execute("UPDATE samples SET image_sha256 = ?, image = ? WHERE run_id = ? AND sample = ?", where)

    def add_solves(self, run_id: int, solves: Sequence[SolveRow]) -> None:
        """Write the optimisations of a regulated pass."""
        with self._transaction() as cursor:
            _insert(cursor, "solves", [asdict(solve) for solve in solves], run_id)

    def add_scores(self, scores: Sequence[ScoreRow]) -> None:
        """Write numbers about images; a newer one takes an older one's place."""
        table = pa.Table.from_pylist([asdict(score) for score in scores])
        with self._transaction() as cursor:
            if table.num_rows:
                cursor.register("new_rows", table)
                cursor.execute("INSERT OR REPLACE INTO scores BY NAME SELECT * FROM new_rows")

    def end_run(self, run_id: int, status: Status) -> None:
        """Mark a run as done or failed, and move all that was written into the file proper."""
        with self._transaction() as cursor:
            cursor.execute("UPDATE runs SET status = ? WHERE run_id = ?", [status, run_id])
        # Another thread that is writing keeps the rows in the write-ahead log, where they are as safe.
        with closing(self.cursor()) as cursor, suppress(duckdb.TransactionException):
            cursor.execute("CHECKPOINT trace")

    def verify(self, run_id: int | None = None) -> pd.DataFrame:
        """Return whether each (sample, branch, phase, call, layer, head, token) is there exactly once.

        Args:
            run_id: the run to check; None for every run of the file.

        Returns:
            A row per run and table: `expected` (the product of the counts) and actual `rows`, `faults`
            (layers of a pass that are not whole) and `whole`.
        """
        return self.sql('FROM completeness WHERE run_id = ? OR ? IS NULL ORDER BY run_id, "table"', [run_id, run_id])

    def maps_of(
        self,
        run_id: int,
        sample: int,
        layer: int | str,
        tokens: Sequence[int],
        phase: Phase = "original",
        branch: Branch = "cond",
    ) -> Float32[np.ndarray, "call head height width"]:
        """Return the summed maps of some tokens at one layer, over the sampling passes that have this phase.

        Args:
            run_id: number of the run.
            sample: number of the image in the run.
            layer: number or path of the layer.
            tokens: token positions, all different; their maps are added.
            phase: as the model computed them, or as an edit left them.
            branch: conditional or unconditional half.

        Raises:
            LookupError: nothing like this was recorded, or not whole.
        """
        rows = self._map_rows([run_id, sample, str(layer), branch, phase, list(tokens)])
        calls, heads = (len(set(rows[name].to_pylist())) for name in ("call", "head"))
        if not rows.num_rows or rows.num_rows != calls * heads * len(tokens):
            asked = f"run {run_id}, sample {sample}, layer {layer}, tokens {list(tokens)}, {phase}, {branch}"
            raise LookupError(f"{asked}: {rows.num_rows} maps of {calls} passes x {heads} heads x {len(tokens)} tokens")
        size = rows["h"][0].as_py(), rows["w"][0].as_py()
        values = rows["map"].combine_chunks().flatten().to_numpy()
        return values.reshape(calls, heads, len(tokens), *size).sum(axis=2)

    def _map_rows(self, params: list[object]) -> pa.Table:
        with closing(self.cursor()) as cursor:
            return cursor.sql(
                "SELECT call, head, token, h, w, map FROM attn WHERE call_kind = 'sample' AND run_id = ? "
                "AND sample = ? AND ? IN (layer::VARCHAR, path) AND branch = ? AND phase = ? "
                "AND list_contains(?, token) "
                "ORDER BY call, head, token",
                params=params,
            ).to_arrow_table()

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with closing(self.cursor()) as cursor:
            cursor.begin()
            yield cursor
            cursor.commit()  # a cursor that is closed without it rolls back


def _insert(
    cursor: duckdb.DuckDBPyConnection,
    table: str,
    rows: pa.Table | Sequence[Mapping[str, object]],
    run_id: int,
) -> None:
    """Insert rows by the names of their columns; columns that the table does not have are an error."""
    arrow = pa.Table.from_pylist(list(rows)) if isinstance(rows, Sequence) else rows
    if arrow.num_rows:
        cursor.register("new_rows", arrow)
        cursor.execute(f"INSERT INTO {table} BY NAME SELECT ?::UINTEGER AS run_id, * FROM new_rows", [run_id])
        cursor.unregister("new_rows")


def _as_json(row: dict[str, object], *columns: str) -> dict[str, object]:
    return row | {column: json.dumps(row[column], sort_keys=True) for column in columns}


def _attached(path: Path, options: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()  # an empty one in memory: ROW_GROUP_SIZE can be given to ATTACH only
    try:
        connection.execute(f"ATTACH ? AS trace ({options})", [str(path)])
        found = connection.execute("SELECT value FROM trace.meta WHERE key = 'schema_version'").fetchall()
    except (duckdb.CatalogException, duckdb.IOException) as error:
        connection.close()
        if isinstance(error, duckdb.CatalogException) or "not a valid DuckDB database" in str(error):
            raise ValueError(f"{path} must be an Attnreg trace, got another kind of file") from error
        raise
    if found != [(SCHEMA_VERSION,)]:
        connection.close()
        raise ValueError(f"{path} must have schema version {SCHEMA_VERSION}, got {found[0][0] if found else None}")
    return connection


def _build(path: Path) -> None:
    """Make an empty trace beside `path` and put it there whole, unless another process was faster."""
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH ? AS trace ({NEW})", [str(draft)])
            connection.execute("USE trace")
            connection.execute((files("tracer") / "schema.sql").read_text(encoding="utf-8"))
            meta = [("schema_version", SCHEMA_VERSION), ("codec", "sqrt_u8"), ("duckdb", duckdb.__version__)]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        link(draft, path)  # unlike a rename, never over a file that is there
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
