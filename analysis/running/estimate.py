"""How long a run will take and how much disk, from the images that are there already.

Conventions: seconds are those of one worker. A method of which no image is timed yet is taken for as slow as the mean
of those that are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.running.units import Unit
from analysis.running.worker import TRACES


@dataclass(frozen=True)
class Estimate:
    """What is left to do.

    Attributes:
        units: batches.
        images: in them.
        seconds: of all workers together, with as many as asked; None where no image is timed yet.
        image_bytes: of images to be written.
        trace_bytes: of traces to be written.
        merged_bytes: of copies of all traces in the parts' own files, as far as they are not there yet.
    """

    units: int
    images: int
    seconds: float | None
    image_bytes: int
    trace_bytes: int
    merged_bytes: int

    @property
    def bytes(self) -> int:
        """Of all that is to be written."""
        return self.image_bytes + self.trace_bytes + self.merged_bytes


def estimate(run: Path, rows: pd.DataFrame, left: Sequence[Unit], workers: int) -> Estimate:
    """Return what is left to do for some units.

    Args:
        run: folder of the run.
        rows: of the ledger: what was timed.
        left: units that are not done.
        workers: that share the work.
    """
    images = sum(len(unit.seeds) for unit in left)
    known = rows.drop_duplicates("unit")
    speeds = (known["seconds"] / known["images"]).groupby([known["part"], known["method"]]).median().dropna()
    seconds = None
    if len(speeds):
        usual = float(speeds.mean())
        each = [float(speeds.get((unit.part, unit.name), usual)) * len(unit.seeds) for unit in left]
        seconds = float(np.sum(each)) / workers if each else 0.0
    sizes = [size for path in rows["image"].head(200) if (size := size_of(run / path))]
    traced = [unit for unit in left if unit.capture is not None]
    trace_bytes = int(_mean_size((run / TRACES).glob("*.duckdb")) * len(traced))
    return Estimate(
        len(left),
        images,
        seconds,
        int(np.mean(sizes) * images) if sizes else 0,
        trace_bytes,
        _unmerged(run, trace_bytes),
    )


def _unmerged(run: Path, coming: int) -> int:
    """Return how much larger all traces, those to come included, are than the files that they are brought together in.

    Those hold scores too, which are small beside traces.
    """
    there = sum(size_of(file) for file in (run / TRACES).glob("*.duckdb") if file.name[0] != ".")
    return max(0, there + coming - sum(map(size_of, run.glob("*.duckdb"))))


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 of one that is gone, or no file: workers rename what they have finished."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _mean_size(files: Iterable[Path]) -> float:
    """Return the mean size of files that are whole; hidden ones are being written."""
    sizes = [size for file in files if file.name[0] != "." and (size := size_of(file))]
    return float(np.mean(sizes)) if sizes else 0.0


def first_units(left: Sequence[Unit]) -> list[Unit]:
    """Return a unit of each method and part, to time."""
    first: dict[tuple[str, str], Unit] = {}
    for unit in left:
        first.setdefault((unit.part, unit.name), unit)
    return list(first.values())


def in_words(seconds: float | None) -> str:
    """Return a duration as one reads it."""
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
