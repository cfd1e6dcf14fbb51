"""What is in a trace file: its runs, its layers, what they take, and whether all of it is there."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from analysis.answers import rendered
from tracer.capture import Capture
from tracer.store import Store

RUNS = """
SELECT r.run_id, r.status, r.method, r.model, r.pipeline, r.scheduler, r.n_steps, r.guidance, r.height, r.width,
       r.dtype, r.capture, count(s.sample) AS images, count(s.image_sha256) AS done,
       (SELECT count(*) FROM calls c WHERE c.run_id = r.run_id) AS calls
FROM runs r LEFT JOIN samples s USING (run_id) GROUP BY ALL ORDER BY r.run_id
"""
LAYERS = """
SELECT run_id, count(*) AS layers, h, w, heads, map_h, map_w, map_heads FROM layers
GROUP BY ALL ORDER BY run_id, h DESC, w DESC
"""


def info(trace: Path) -> str:
    """Return a page that says what a trace holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no trace.
        TraceBusy: it is being written.
    """
    with Store.open(trace) as store:
        runs, layers, checked = store.sql(RUNS), store.sql(LAYERS), store.verify()
        blocks = store.sql("SELECT block_size FROM pragma_database_size() WHERE database_name = 'trace'")
        block = int(blocks["block_size"][0])
        bytes_of = {table: _bytes(store, table, block) for table in checked["table"].unique()}
    head = Text(f"{trace}  {trace.stat().st_size / 1e6:.1f} MB", style="bold")
    if runs.empty:
        return rendered(Group(head, Text("no run")))
    return rendered(Group(head, _runs(runs), Text(), _layers(layers), Text(), _tables(checked, bytes_of)))


def _bytes(store: Store, table: str, block: int) -> int:
    """Return what a table's blocks take."""
    blocks = store.sql("SELECT count(DISTINCT block_id) n FROM pragma_storage_info(?) WHERE persistent", [table])
    return int(blocks["n"][0]) * block


def _grid(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column[0] == ">" else "left")
    return table


def _runs(runs) -> Table:
    table = _grid(
        ">run", "status", "method", "model", "pipeline", "scheduler", ">steps", ">guidance", "pixels", "dtype",
        ">images", ">calls", "kept",
    )  # fmt: skip
    for run in runs.itertuples():
        images = str(run.images) if run.done == run.images else f"{run.done} of {run.images}"
        size = f"{_number(run.height)}x{_number(run.width)}"
        numbers = (_number(run.n_steps), _number(run.guidance))
        table.add_row(
            str(run.run_id), run.status, run.method, run.model, run.pipeline, run.scheduler, *numbers, size, run.dtype,
            images, str(run.calls), _kept(run.capture),
        )  # fmt: skip
    return table


def _layers(layers) -> Table:
    table = _grid(">run", ">layers", "attention", ">heads", "maps kept", ">of each token")
    for row in layers.itertuples():
        kept = f"{row.map_h}x{row.map_w}" if row.map_heads else "none"
        table.add_row(str(row.run_id), str(row.layers), f"{row.h}x{row.w}", str(row.heads), kept, str(row.map_heads))
    return table


def _tables(checked, bytes_of: dict[str, int]) -> Table:
    table = _grid(">run", "table", ">rows", ">expected", "whole", ">MB of all runs")
    for row in checked.itertuples():
        whole = "yes" if row.whole else f"NO: {row.faults} layers of a pass are not"
        size = f"{bytes_of[row.table] / 1e6:.1f}"
        table.add_row(str(row.run_id), row.table, f"{row.rows:,}", f"{row.expected:,}", whole, size)
    return table


def _kept(capture: str) -> str:
    """Return what differs from the default choice."""
    default = json.loads(json.dumps(asdict(Capture())))
    chosen = [f"{name}={value}" for name, value in json.loads(capture).items() if value != default.get(name)]
    return ", ".join(chosen) or "default"


def _number(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:g}"
