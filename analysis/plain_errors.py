"""Errors that a user can mend, said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import typer

from tracer.database import TraceBusy
from tracer.writer import TraceNotWritten


@contextmanager
def plainly() -> Iterator[None]:
    """Turn what a user can mend into one line and exit code 2."""
    try:
        yield
    except (ValueError, OSError, TraceBusy, TraceNotWritten, duckdb.Error) as error:
        typer.echo(f"attnreg: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
