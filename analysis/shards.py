"""The rows of an experiment on disk: small Parquet files, each written whole or not at all.

Conventions: one row per (method, prompt, seed, target):
    spec          hash of what makes the images: weights, sampler, method, parameters, steps, guidance, batch
    method, parameters (JSON), prompt_id, prompt, seen (whether training showed the pair), seed, target
    score         of the target's best box, in [0, 1]; found if it is above `threshold`
    threshold, protocol, image_sha256
    standing      "no-op" where the method had nothing to do, so that the image is the plain one; else "acts"
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow.dataset import dataset
from pyarrow.parquet import write_table

KEY = ["spec", "protocol", "prompt", "seed", "target"]

SCHEMA = pa.schema(
    [
        ("spec", pa.string()),
        ("method", pa.string()),
        ("parameters", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("seen", pa.bool_()),
        ("seed", pa.int64()),
        ("target", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("protocol", pa.string()),
        ("image_sha256", pa.string()),
        ("standing", pa.string()),
    ]
)


def write_shard(folder: Path, rows: Sequence[dict[str, object]]) -> Path:
    """Write rows as one file that appears whole; the same rows' keys give the same file.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows must be at least one, got none")
    keys = [[row[name] for name in KEY] for row in rows]
    name = hashlib.blake2b(repr(keys).encode(), digest_size=12).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / f"{name}.parquet", folder / f"{name}.partial"
    write_table(pa.Table.from_pylist(list(rows), SCHEMA), partial)
    partial.replace(path)
    return path


def read_shards(folder: Path) -> pd.DataFrame:
    """Return all rows, each key once."""
    files = [str(path) for path in sorted(folder.glob("*.parquet"))]
    rows = dataset(files, SCHEMA, format="parquet").to_table() if files else SCHEMA.empty_table()
    frame = rows.to_pandas().drop_duplicates(KEY, ignore_index=True)
    return frame.assign(standing=frame["standing"].fillna("acts"))  # files from before there were methods that idle


def done(folder: Path, protocol: str) -> set[tuple[str, str, int]]:
    """Return the images that have been looked at under a protocol, as (spec, prompt, seed)."""
    rows = read_shards(folder)
    rows = rows.loc[rows["protocol"] == protocol, ["spec", "prompt", "seed"]]
    return set(rows.itertuples(index=False, name=None))
