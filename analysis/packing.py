"""A finished trace, copied into a smaller file: recording leaves gaps and short row groups behind."""

from pathlib import Path

import duckdb

# Recording wants short row groups (tracer/store.py); a file that is only read any more is a third smaller with longer
# ones: 32 MB in place of 48 for the demo's 32 images, in 3 s.
ROW_GROUP = 16_384


def pack(recorded: Path, packed: Path) -> None:
    """Write the tables, views and macros of one trace file into a new one.

    Raises:
        ValueError: there is a file at `packed`.
    """
    if packed.exists():
        raise ValueError(f"{packed} must not exist yet")
    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.execute("ATTACH ? AS recorded (READ_ONLY)", [str(recorded)])
        connection.execute(f"ATTACH ? AS packed (ROW_GROUP_SIZE {ROW_GROUP}, STORAGE_VERSION 'v1.4.0')", [str(packed)])
        connection.execute("COPY FROM DATABASE recorded TO packed")
        connection.execute("CHECKPOINT packed")
