"""A query's answer, written as a table, CSV, JSON or Parquet; and what is in a trace file."""

import csv
import io
import json
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracer.store import Store

ROWS = 200  # that a table on the screen shows


class Form(StrEnum):
    """How an answer is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def ask(
    trace: Path, query: str, form: Form = Form.TABLE, out: Path | None = None, others: Mapping[str, Path] | None = None
) -> str:
    """Return a query's answer as text; with `out`, write it there, whole or not at all, and say how many rows.

    The trace is opened read-only, and the query can read or write no other file.

    Args:
        trace: the file to ask.
        query: one SQL statement.
        form: table, CSV, JSON (a list of rows) or Parquet.
        out: file to write.
        others: traces that the query can name too, by that name.

    Raises:
        FileNotFoundError: a trace is not there.
        ValueError: a file is no trace, or Parquet is asked for without a file to write.
        duckdb.Error: the query is wrong, or not allowed.
    """
    if form is Form.PARQUET and out is None:
        raise ValueError("Parquet goes into a file; say which by --out")
    with Store.open(trace) as store:
        for name, path in (others or {}).items():
            store.attach(path, name)
        store.confine()
        with closing(store.cursor()) as cursor:
            relation = cursor.sql(query)
            answer = pa.table({}) if relation is None else relation.to_arrow_table()
    if out is None:
        return _text(answer, form)
    partial = out.with_name(f".{out.name}.partial")
    try:
        if form is Form.PARQUET:
            pq.write_table(answer, partial)
        else:
            partial.write_text(_text(answer, form) + "\n", encoding="utf-8")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return f"{out}: {answer.num_rows} rows"


def _text(answer: pa.Table, form: Form) -> str:
    if form is Form.JSON:
        return json.dumps(answer.to_pylist(), indent=1, default=_plain, ensure_ascii=False)
    if form is Form.CSV:
        page = io.StringIO()
        writer = csv.writer(page, lineterminator="\n")
        writer.writerow(answer.column_names)
        for row in answer.to_pylist():
            writer.writerow([json.dumps(v, default=_plain) if isinstance(v, list | dict) else v for v in row.values()])
        return page.getvalue().rstrip("\n")
    return _table(answer)


def _plain(value: object) -> object:
    """Return what JSON has no name for as a number or text."""
    return float(value) if isinstance(value, Decimal) else str(value)


def _table(answer: pa.Table) -> str:
    """Return rows under their names, numbers to the right; cells that hold long lists are cut."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for field in answer.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        table.add_column(Text(field.name), justify="right" if number else "left", overflow="ellipsis")
    for row in answer.slice(0, ROWS).to_pylist():
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    left = answer.num_rows - ROWS
    note = Text(f"{left} more rows; --format csv shows all", style="dim") if left > 0 else None
    return rendered(Group(table, *([note] if note else [])))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) > 4:
        return f"[{', '.join(_cell(one) for one in value[:3])}, ... {len(value)}]"
    return str(value)


def rendered(content: RenderableType) -> str:
    """Return what a terminal of this width would show."""
    page = io.StringIO()
    width = None if Console().is_terminal else 200
    Console(file=page, force_terminal=Console().is_terminal, width=width).print(content)
    return "\n".join(line.rstrip() for line in page.getvalue().rstrip("\n").split("\n"))
