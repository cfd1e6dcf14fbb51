"""Errors that a user can mend, said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import typer

from analysis.running.engines import WorkersDied
from analysis.running.worker import Unfit
from tracer.database import TraceBusy
from tracer.writer import TraceNotWritten

# ImportError: an extra that is not installed, such as Ray.
MENDABLE = (ValueError, OSError, ImportError, TraceBusy, TraceNotWritten, Unfit, WorkersDied, duckdb.Error)


@contextmanager
def plainly() -> Iterator[None]:
    """Turn what a user can mend into one line and exit code 2."""
    try:
        yield
    except MENDABLE as error:
        typer.echo(f"attnreg: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
