"""Opening a trace file, and saying plainly why one cannot be opened or written."""

import re
from os import link
from pathlib import Path
from shutil import disk_usage
from uuid import uuid4

import duckdb

from tracer.folders import sql_of

SCHEMA_VERSION = "2"
# Rows are few and heavy: DuckDB's own row groups (122,880) would rewrite every map two to three times over.
# The file does not remember this, so it is given each time.
WRITING = "ROW_GROUP_SIZE 2048"
NEW = f"{WRITING}, STORAGE_VERSION 'v1.4.0'"  # read by DuckDB 1.4 and later; 2.0's own default only by 2.0
READING = "READ_ONLY"
ROOM = 64 * 2**20  # bytes that must be free before a run begins: a full disk in the middle would cost its last image
_NAME = re.compile(r"[A-Za-z_]\w*")


class TraceBusy(RuntimeError):
    """Another process, or another store of this one, has the file open for writing."""


def opened(path: Path, options: str) -> duckdb.DuckDBPyConnection:
    """Return a connection to the trace at `path`, attached under the name "trace".

    Raises:
        ValueError: the file is no trace, or one of another schema version.
        TraceBusy: it is being written.
        PermissionError: it may not be opened so.
    """
    connection = duckdb.connect()  # an empty one in memory: ROW_GROUP_SIZE can be given to ATTACH only
    try:
        connection.execute("SET temp_directory = ?", [f"{path}.tmp"])  # not .tmp in whatever folder one stands in
        attach(connection, path, "trace", options)
    except BaseException:
        connection.close()
        raise
    return connection


def attach(connection: duckdb.DuckDBPyConnection, path: Path, name: str, options: str = READING) -> None:
    """Attach a trace to a connection, under a name that its tables are reached by.

    Raises:
        ValueError: the file is no trace, or one of another schema version, or the name is none or taken.
        TraceBusy: it is being written.
        PermissionError: it may not be opened so.
    """
    taken = [row[0] for row in connection.execute("SELECT database_name FROM duckdb_databases()").fetchall()]
    if not _NAME.fullmatch(name) or name.lower() in (other.lower() for other in taken):
        raise ValueError(f"name must be letters, digits and _, and none of {', '.join(taken)}, got {name!r}")
    try:
        connection.execute(f"ATTACH ? AS {name} ({options})", [str(path)])
        version = connection.execute(f"SELECT value FROM {name}.meta WHERE key = 'schema_version'").fetchall()
    except (duckdb.CatalogException, duckdb.IOException, duckdb.BinderException) as error:
        raise _plain(error, path) from error
    if version != [(SCHEMA_VERSION,)]:
        found = version[0][0] if version else None
        raise ValueError(f"{path} must have schema version {SCHEMA_VERSION}, got {found}; trace it anew")


def _plain(error: duckdb.Error, path: Path) -> Exception:
    text = str(error)
    if isinstance(error, duckdb.CatalogException) or "not a valid DuckDB database" in text:
        return ValueError(f"{path} must be an Attnreg trace, got another kind of file")
    if "Conflicting lock" in text or "file handle conflict" in text or "already attached" in text:
        holder = re.search(r"PID (\d+)", text)
        who = f"by process {holder[1]}" if holder else "in this process"
        return TraceBusy(f"{path} is open for writing {who}; a trace has one writer, and no reader beside it")
    if "Permission denied" in text or "Read-only file system" in text:
        return PermissionError(f"{path} may not be opened so: {text.splitlines()[0]}")
    return error


def build(path: Path) -> None:
    """Make an empty trace beside `path` and put it there whole, unless another process was faster.

    Raises:
        FileNotFoundError: the folder does not exist.
        PermissionError: it is read-only.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist")
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH ? AS trace ({NEW})", [str(draft)])
            connection.execute("USE trace")
            connection.execute(sql_of("schema"))
            connection.execute(sql_of("views"))
            meta = [("schema_version", SCHEMA_VERSION), ("codec", "sqrt_64"), ("duckdb", duckdb.__version__)]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        link(draft, path)  # unlike a rename, never over a file that is there
    except FileExistsError:
        pass
    except duckdb.IOException as error:
        raise _plain(error, path) from error
    finally:
        draft.unlink(missing_ok=True)


def check_room(path: Path) -> None:
    """Raise OSError if there is hardly any room left on the disk of `path`."""
    if (free := disk_usage(path.parent).free) < ROOM:
        raise OSError(f"a trace needs at least {ROOM >> 20} MB to begin with; {path.parent} has {free >> 20} MB free")
