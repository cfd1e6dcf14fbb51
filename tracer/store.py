"""The trace store: a DuckDB file of runs, words, passes, statistics and maps. Only this file changes it.

    with Store.create("run.duckdb") as store:      # new or existing, read and write
        ...
    with Store.open("run.duckdb") as store:        # read-only, any number of processes
        store.sql("SELECT step, word, share FROM dominance WHERE layer = ?", [3])
        store.maps(0, word="glasses", layers="up_blocks.1.*")

One process at a time may write a file, and meanwhile no other can read it; inside the writing process every
thread reads through `Store.sql` or its own `Store.cursor`. `schema.sql` says what the tables hold, `views.sql` what
can be asked.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float32

from tracer import database
from tracer.arrow import MAPS
from tracer.capture import Capture
from tracer.maps import Chosen, read_maps
from tracer.rows import Branch, Pass, Phase, RunRow, SampleRow, Status
from tracer.shown import store_html

# What makes a transaction: enough rows for whole row groups, which go straight to their place in the file (the rest of
# each goes through the log and is written twice), but not so much that memory grows with the model.
ENOUGH_ROWS, ENOUGH_BYTES = 16_384, 32 * 2**20
# What DuckDB may hold while a run is open, beside the generation: it would keep all that it wrote, in most of the RAM.
MEMORY = "48MB"


class Store:
    """A trace file, open for reading or for both."""

    def __init__(self, path: Path, options: str, inside: duckdb.DuckDBPyConnection | None = None):
        """Attach an existing file; use `create` or `open`."""
        self.path = path
        self._lock = threading.Lock()
        self._is_lent = inside is not None
        self._connection = database.opened(path, options, inside)

    @classmethod
    def create(cls, path: str | Path) -> "Store":
        """Return the store at `path`, to read and write; a new file appears with its schema or not at all.

        Raises:
            FileNotFoundError: the folder does not exist.
            PermissionError: it, or the file, is read-only.
            OSError: a new file, and hardly any room left on the disk.
            ValueError: the file is there and is no trace, or one of another schema version.
            TraceBusy: the file is open already.
            TraceNotWritten: the disk is full.
        """
        path = Path(path)
        database.check_folder(path)
        if not path.exists():
            database.build(path)
        return cls(path, database.WRITING)

    @classmethod
    def open(cls, path: str | Path, inside: duckdb.DuckDBPyConnection | None = None) -> "Store":
        """Return the store at `path`, read-only.

        Args:
            path: of the file.
            inside: the caller's own connection to open it in, for one store at a time; it stays when the store is
                closed. A file that is opened again and again is open in a fifth of the time so.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no trace, or one of another schema version.
            TraceBusy: it is being written.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no trace at {path}")
        return cls(path, database.READING, inside)

    def __enter__(self) -> "Store":
        """Return the store itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self.close()

    def _repr_html_(self) -> str:
        return store_html(self)

    def close(self) -> None:
        """Close the file; other processes may open it then."""
        if self._is_lent:
            self._connection.execute(database.LET_GO)
        else:
            self._connection.close()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Return a connection of one's own to the open file; the caller closes it. One per thread."""
        with self._lock:
            cursor = self._connection.cursor()
        with database.writing(self.path):  # a file that DuckDB refuses after an error says so here
            cursor.execute("USE trace")
        return cursor

    def sql(self, query: str, params: Sequence[object] | Mapping[str, object] | None = None) -> pd.DataFrame:
        """Return the query's whole result; `params` are bound to its ``?`` or ``$name``."""
        # A cursor for each query: a result that nobody read to its end would block the next one.
        with closing(self.cursor()) as cursor:
            return cursor.execute(query, params).df()

    def attach(self, path: str | Path, name: str) -> None:
        """Attach another trace, read-only, so that one query can compare them: ``FROM dominance JOIN name.dominance``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no trace, or one of another schema version, or the name is none or taken.
            TraceBusy: it is being written, or open in this process already.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no trace at {path}")
        with closing(self.cursor()) as cursor:
            database.attach(cursor, Path(path), name)

    def confine(self) -> None:
        """Let no query read or write any file but the traces that are open; there is no way back."""
        with closing(self.cursor()) as cursor:
            for name, value in (("enable_external_access", "false"), ("python_enable_replacements", "false")):
                cursor.execute(f"SET {name} = {value}")
            cursor.execute("SET lock_configuration = true")

    def maps(
        self,
        image: int | tuple[int, int],
        word: str | int,
        steps: Sequence[int] | int | None = None,
        layers: Sequence[int | str] | int | str | None = None,
        size: int | None = None,
        phase: Phase = "original",
        branch: Branch = "cond",
    ) -> Float32[np.ndarray, "step layer head height width"]:
        """Return a word's maps at every step, layer and head asked for, over the sampling passes.

        Args:
            image: its number in the view ``images`` (negative from the end), or (run_id, sample).
            word: as the prompt writes it ("glasses", "cat#2" for the second, "pink apple"); "[start]", "[end]",
                "[padding]" or "[image]"; or a token's number. Of several pieces the maps are added.
            steps: sampling steps; None for all that were recorded.
            layers: numbers, or paths and patterns of them; None for all.
            size: height of the maps, to choose the layers by.
            phase: as the model computed them, or as an edit left them, of the layers and steps that it acted on.
            branch: conditional or unconditional half.

        Raises:
            LookupError: nothing like this was recorded, or not whole.
            ValueError: the word is not in the prompt, or the chosen layers' maps are not of one size.
        """
        with closing(self.cursor()) as cursor:
            return read_maps(cursor, image, word, Chosen(steps, layers, size, phase, branch))

    def add_run(self, run: RunRow, capture: Capture) -> int:
        """Write a run of status 'running' and return its number.

        Raises:
            OSError: there is hardly any room left on the disk.
        """
        database.check_room(self.path)
        row = asdict(run) | {"created_at": datetime.now(UTC).replace(tzinfo=None), "status": "running"}
        row |= {"capture": asdict(capture)}
        with self.transaction() as cursor:
            last = cursor.execute("SELECT coalesce(max(run_id), 0) FROM runs").fetchall()[0][0]
            _insert(cursor, "runs", [_as_json(row, "method_params", "versions", "capture")], last + 1)
            cursor.execute(f"SET memory_limit = '{MEMORY}'")
        return last + 1

    def add_samples(self, run_id: int, samples: Sequence[SampleRow], tokens: Sequence[Mapping[str, object]]) -> None:
        """Write images to be made, and their tokens.

        Args:
            run_id: of the run that makes them.
            samples: a row per image.
            tokens: a row per token of their prompts, see `token_rows`.
        """
        rows = [_as_json(asdict(sample), "targets") for sample in samples]
        with self.transaction() as cursor:
            _insert(cursor, "samples", rows, run_id)
            _insert(cursor, "tokens", tokens, run_id)

    def add_passes(self, run_id: int, passes: Sequence[Pass]) -> None:
        """Write what some passes of the model recorded, all of it in one transaction."""
        layers = [row for recorded in passes for row in recorded.layers]
        with self.transaction() as cursor:
            rows = [asdict(row) | {"block": row.block, "block_idx": row.block_idx} for row in layers]
            _insert(cursor, "layers", rows, run_id)
            _insert(cursor, "calls", [asdict(call) for recorded in passes for call in recorded.calls], run_id)
            _insert(cursor, "head_stats", _joined([recorded.stats for recorded in passes]), run_id)
            _insert(cursor, "solves", _joined([recorded.solves for recorded in passes]), run_id)
            maps = _joined([recorded.maps for recorded in passes])
            for column, table in MAPS.items():
                if column in maps.column_names:
                    _insert(cursor, table, maps, run_id)

    def add_images(self, run_id: int, images: Mapping[int, tuple[str, str]]) -> None:
        """Note each sample's finished image: its SHA-256 and its path."""
        with self.transaction() as cursor:
            for sample, (sha256, path) in images.items():
                where = [sha256, path, run_id, sample]
                cursor.execute("UPDATE samples SET image_sha256 = ?, image = ? WHERE run_id = ? AND sample = ?", where)

    def end_run(self, run_id: int, status: Status) -> None:
        """Mark a run as done or failed; of one that is done move all that was written into the file proper.

        Raises:
            TraceNotWritten: the disk is full; all that was finished is in the file or in its log.
        """
        with self.transaction() as cursor:
            cursor.execute("UPDATE runs SET status = ? WHERE run_id = ?", [status, run_id])
        # Rows are as safe in the write-ahead log. They stay there while another thread writes, and on a disk that may
        # be full: once a checkpoint has failed, DuckDB refuses an open file to all, readers too.
        with database.writing(self.path), closing(self.cursor()) as cursor:
            if status == "done" and database.has_room(self.path):
                with suppress(duckdb.TransactionException):
                    cursor.execute("CHECKPOINT trace")
            cursor.execute("RESET memory_limit")

    def verify(self, run_id: int | None = None) -> pd.DataFrame:
        """Return whether each (sample, branch, phase, call, layer, head, token) is there exactly once.

        Args:
            run_id: the run to check; None for every run of the file.

        Returns:
            A row per run and table, with `expected` (the product of the counts) and actual `rows`, `faults`
            (layers of a pass that are not whole) and `whole`.
        """
        return self.sql('FROM completeness WHERE run_id = ? OR ? IS NULL ORDER BY run_id, "table"', [run_id, run_id])

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a cursor; what it wrote is kept when the block ends well, and nothing of it otherwise."""
        with database.writing(self.path), closing(self.cursor()) as cursor:
            cursor.execute("SET SESSION preserve_insertion_order = false")  # then all cores compress a transaction
            cursor.begin()
            yield cursor
            cursor.commit()  # a cursor that is closed without it rolls back


@dataclass
class Pending:
    """Passes that wait until there are enough rows for a transaction; only the writing thread touches it."""

    store: Store
    run_id: int
    passes: list[Pass] = field(default_factory=list)

    def add(self, recorded: Pass) -> None:
        """Take a pass, and write all that wait once they are many."""
        self.passes.append(recorded)
        rows = sum(waiting.stats.num_rows for waiting in self.passes)
        if rows >= ENOUGH_ROWS or sum(waiting.maps.nbytes for waiting in self.passes) >= ENOUGH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all that wait."""
        if self.passes:
            self.store.add_passes(self.run_id, self.passes)
            self.passes = []


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables([table for table in tables if table.num_rows] or [pa.table({})])


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
