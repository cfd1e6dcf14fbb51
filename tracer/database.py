"""Opening a trace file, and saying plainly why one cannot be opened or written."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from uuid import uuid4

import duckdb

from tracer.folders import sql_of
from tracer.writer import TraceNotWritten

SCHEMA_VERSION = "3"
# Rows are few and heavy: DuckDB's own row groups (122,880) would rewrite every map two to three times over.
# The file does not remember this, so it is given each time.
WRITING = "ROW_GROUP_SIZE 2048"
NEW = f"{WRITING}, STORAGE_VERSION 'v1.4.0'"  # read by DuckDB 1.4 and later; 2.0's own default only by 2.0
READING = "READ_ONLY"
LET_GO = "DETACH DATABASE IF EXISTS trace"
ROOM = 64 * 2**20  # bytes that must be free before a run begins: a full disk in the middle would cost its last image
# What a system says of a disk that takes no more, and what that means.
_FULL = {
    "No space left on device": "the disk is full",
    "not enough space on the disk": "the disk is full",
    "Disk quota exceeded": "the quota of the disk is used up",
    "File too large": "the file may not grow further",
}
_NAME = re.compile(r"[A-Za-z_]\w*")


class TraceBusy(RuntimeError):
    """Another process, or another store of this one, has the file open, and one of the two is to write it."""


def opened(path: Path, options: str, inside: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyConnection:
    """Return a connection to the trace at `path`, attached under the name "trace"; a new one, or the one given.

    Raises:
        ValueError: the file is no trace, or one of another schema version.
        TraceBusy: it is being written.
        PermissionError: it may not be opened so.
    """
    connection = inside or duckdb.connect()  # an empty one in memory: ROW_GROUP_SIZE can be given to ATTACH only
    try:
        connection.execute("SET temp_directory = ?", [f"{path}.tmp"])  # not .tmp in whatever folder one stands in
        attach(connection, path, "trace", options)
    except BaseException:
        if inside is None:
            connection.close()
        else:
            inside.execute(LET_GO)
        raise
    return connection


def attach(connection: duckdb.DuckDBPyConnection, path: Path, name: str, options: str = READING) -> None:
    """Attach a trace to a connection, under a name that its tables are reached by.

    Raises:
        ValueError: the file is no trace, or one of another schema version, or the name is none or taken.
        TraceBusy: it is being written.
        PermissionError: it may not be opened so.
        TraceNotWritten: its disk is full.
    """
    taken = [row[0] for row in connection.execute("SELECT database_name FROM duckdb_databases()").fetchall()]
    if not _NAME.fullmatch(name) or name.lower() in (other.lower() for other in taken):
        raise ValueError(f"name must be letters, digits and _, and none of {', '.join(taken)}, got {name!r}")
    try:
        connection.execute(f"ATTACH ? AS {name} ({options})", [str(path)])
        version = connection.execute(f"SELECT value FROM {name}.meta WHERE key = 'schema_version'").fetchall()
    except duckdb.Error as error:
        if plain := _plain(error, path):
            raise plain from error
        raise
    if version != [(SCHEMA_VERSION,)]:
        found = version[0][0] if version else None
        raise ValueError(f"{path} must have schema version {SCHEMA_VERSION}, got {found}; trace it anew")


def _plain(error: duckdb.Error, path: Path) -> Exception | None:
    text = str(error)
    if isinstance(error, duckdb.CatalogException) or re.search("not a valid DuckDB database|Is a directory", text):
        return ValueError(f"{path} must be an Attnreg trace, got another kind of file")
    if "Conflicting lock" in text or "file handle conflict" in text or "already attached" in text:
        holder = re.search(r"PID (\d+)", text)
        who = f"by process {holder[1]}" if holder else "in this process"
        return TraceBusy(
            f"{path} is open already, {who}; a trace has one writer, and no reader beside it: close it first, or leave "
            "its `with` block"
        )
    if "Permission denied" in text or "Read-only file system" in text:
        return PermissionError(f"{path} may not be opened so: {text.splitlines()[0]}")
    return _full(error, path)


def _full(error: duckdb.Error, path: Path) -> TraceNotWritten | None:
    for said, meaning in _FULL.items():
        if said in str(error):
            kept = f"{path} keeps every image that was finished before" if path.exists() else f"{path} was not made"
            kept += ", and must be opened anew" * (path.exists() and "invalidated" in str(error))
            return TraceNotWritten(f"the trace could not be written: {meaning} ({said}); {kept}")
    return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say plainly, in place of DuckDB, that the disk of `path` took no more; every other error stays as it is.

    Raises:
        TraceNotWritten: from DuckDB's error.
    """
    try:
        yield
    except duckdb.Error as error:
        if full := _full(error, path):
            raise full from error
        raise


def check_folder(path: Path) -> None:
    """Raise unless files may be made beside `path`: DuckDB's log of what is being written lies there.

    Raises:
        FileNotFoundError: the folder does not exist.
        PermissionError: it is read-only.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(f"{path} may not be written: its folder is read-only")


def build(path: Path) -> None:
    """Make an empty trace beside `path` and put it there whole, unless another process was faster.

    Raises:
        OSError: there is hardly any room on the disk.
        TraceNotWritten: it took no more.
    """
    check_room(path)
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with writing(path), duckdb.connect() as connection:
            connection.execute(f"ATTACH ? AS trace ({NEW})", [str(draft)])
            connection.execute("USE trace")
            connection.execute(sql_of("schema"))
            connection.execute(sql_of("views"))
            meta = [("schema_version", SCHEMA_VERSION), ("codec", "sqrt_64"), ("duckdb", duckdb.__version__)]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
            connection.execute("CHECKPOINT trace")  # closing does it too, but says nothing when the disk is full
        os.link(draft, path)  # unlike a rename, never over a file that is there
    except FileExistsError:
        pass
    finally:
        for file in (draft, draft.with_name(f"{draft.name}.wal")):
            file.unlink(missing_ok=True)


def has_room(path: Path) -> bool:
    """Return whether a run may begin on the disk of `path`, and its end be moved into the file proper."""
    return disk_usage(path.parent).free >= ROOM


def check_room(path: Path) -> None:
    """Raise OSError if there is hardly any room left on the disk of `path`."""
    if not has_room(path):
        free = disk_usage(path.parent).free
        raise OSError(f"a trace needs at least {ROOM >> 20} MB to begin with; {path.parent} has {free >> 20} MB free")
