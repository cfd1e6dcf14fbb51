"""What is done, as files that appear whole: one for each unit, and one for each that failed.

Conventions: ``units/<key>.parquet`` has a row per image:
    unit, part, method (that the images were made by), prompt_id, prompt, seed, image (path from the run's folder),
    image_sha256, images (in its batch), seconds (of the whole batch, writing not included), passes, gradient_passes
    (of the network, for the batch), peak_bytes, device, threads, host, traced (attention was kept meanwhile: such
    seconds tell how long a run takes, and not what a method costs)
``failures/<key>.json`` says what went wrong with a unit; it is not tried again until that is asked for.
All files are one query: ``FROM read_parquet('units/*.parquet')``.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
from pyarrow.dataset import dataset
from pyarrow.parquet import write_table

from analysis.running.units import Job

UNITS, FAILURES = "units", "failures"
SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("part", pa.string()),
        ("method", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("image", pa.string()),
        ("image_sha256", pa.string()),
        ("images", pa.int64()),
        ("seconds", pa.float64()),
        ("passes", pa.int64()),
        ("gradient_passes", pa.int64()),
        ("peak_bytes", pa.int64()),
        ("device", pa.string()),
        ("threads", pa.int64()),
        ("host", pa.string()),
        ("traced", pa.bool_()),
    ]
)


def write_unit(run: Path, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Note a unit as done, and forget that it failed before."""
    folder = run / UNITS
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{key}.{uuid4().hex[:8]}.partial"
    write_table(pa.Table.from_pylist([dict(row) for row in rows], SCHEMA), partial)
    partial.replace(folder / f"{key}.parquet")
    (run / FAILURES / f"{key}.json").unlink(missing_ok=True)


def write_failure(run: Path, key: str, facts: Mapping[str, Any]) -> None:
    """Note that a unit failed, and why."""
    folder = run / FAILURES
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{key}.json", json.dumps(dict(facts), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all; others may write the same."""
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def done(run: Path) -> set[str]:
    """Return the keys of the units that are done."""
    return _keys(run / UNITS, ".parquet")


def failures(run: Path) -> dict[str, dict[str, Any]]:
    """Return what went wrong, by key, of the units that failed and were not done since."""
    files = {key: run / FAILURES / f"{key}.json" for key in sorted(_keys(run / FAILURES, ".json") - done(run))}
    return {key: json.loads(file.read_text(encoding="utf-8")) for key, file in files.items()}


def over(run: Path) -> set[str]:
    """Return the keys of the units that are done or failed."""
    return done(run) | _keys(run / FAILURES, ".json")


def left_of(run: Path, job: Job) -> Job:
    """Return the units of a job that are neither done nor failed."""
    past = over(run)
    return tuple(unit for unit in job if unit.key not in past)


def forget_failures(run: Path, keys: Iterable[str]) -> None:
    """Let units that failed be tried again."""
    for key in keys:
        (run / FAILURES / f"{key}.json").unlink(missing_ok=True)


def forget(run: Path, keys: Iterable[str]) -> None:
    """Take units for not done, whatever lies there of them."""
    for key in keys:
        (run / UNITS / f"{key}.parquet").unlink(missing_ok=True)


def rows_of(run: Path) -> pd.DataFrame:
    """Return the rows of all units, sorted by unit and seed."""
    files = [str(run / UNITS / f"{key}.parquet") for key in sorted(done(run))]
    table = dataset(files, SCHEMA, format="parquet").to_table() if files else SCHEMA.empty_table()
    rows = table.to_pandas().sort_values(["unit", "seed"], ignore_index=True)
    return rows.assign(traced=rows["traced"].eq(True))  # not known of what was made before there was this column


def _keys(folder: Path, suffix: str) -> set[str]:
    if not folder.is_dir():
        return set()
    return {name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix) and name[0] != "."}
