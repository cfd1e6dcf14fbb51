"""From what was measured in one pass to the Arrow tables that the store inserts.

Conventions: arrays are contiguous and little-endian; rows lie in the order layer, sample, head, token.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from tracer.measure import Measured
from tracer.statistics import STATISTICS

# the tables of maps, by the column that only they have
MAPS = {"q": "maps", "bits": "maps_f16", "map": "maps_f32"}

_BRANCHES = pa.array(["cond", "uncond"])
_PHASES = pa.array(["original", "edited"])


def stats_table(call: int, measured: Sequence[Measured]) -> pa.Table:
    """Return the rows of ``head_stats`` of one pass."""
    return _table([_stats_batch(call, part) for part in measured])


def maps_table(call: int, measured: Sequence[Measured]) -> pa.Table:
    """Return the rows of the table of maps (`MAPS` says of which) of one pass; no row where no map is kept."""
    return _table([_maps_batch(call, part) for part in measured if part.maps is not None])


def _table(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches) if batches else pa.table({})


def _stats_batch(call: int, part: Measured) -> pa.RecordBatch:
    # (sample, head, column) of each row: nonzero lists them in the order in which the tensors hold them
    present = np.repeat(part.columns.present[:, None], part.layer.heads, axis=1)
    sample, head, column = np.nonzero(present)
    statistics = part.statistics.numpy()[sample, head, column].T
    histograms = part.histograms.numpy()[sample, head, column]
    number, word = part.columns.numbers[sample, column], part.columns.words[sample, column]
    fields = _keys(call, part, sample, head)
    fields["token"] = pa.array(number.astype(np.uint16), mask=number < 0)
    fields["word_idx"] = pa.array(word, mask=word < 0)
    for name, values in zip(STATISTICS, statistics, strict=True):
        # NaN, which stands for "undefined", becomes NULL
        fields[name] = pa.array(np.ascontiguousarray(values), from_pandas=True)
    fields["hist"] = _lists(histograms.astype(np.uint32))
    return pa.RecordBatch.from_pydict(fields)


def _maps_batch(call: int, part: Measured) -> pa.RecordBatch:
    assert part.maps is not None
    maps = part.maps.numpy()
    present = part.columns.present[:, : maps.shape[2]]
    sample, row, column = np.nonzero(np.repeat(present[:, None], maps.shape[1], axis=1))
    heads = part.heads
    fields = _keys(call, part, sample, np.asarray([0 if head is None else head for head in heads])[row])
    if heads == (None,):
        fields["head"] = pa.nulls(len(row), pa.uint16())
    fields["token"] = pa.array(part.columns.numbers[sample, column].astype(np.uint16))
    chosen = maps.reshape(-1, maps.shape[-1]) if present.all() else maps[sample, row, column]
    if part.code is not None:
        low, step = part.code.numpy()[sample, row, column].T
        fields["low"], fields["step"] = (pa.array(np.ascontiguousarray(values)) for values in (low, step))
        fields["q"] = _lists(chosen)
    elif chosen.dtype == np.int16:
        fields["bits"] = _lists(chosen.view(np.uint16))
    else:
        fields["map"] = _lists(chosen)
    return pa.RecordBatch.from_pydict(fields)


def _keys(call: int, part: Measured, sample: np.ndarray, head: np.ndarray) -> dict[str, pa.Array]:
    rows = len(sample)
    return {
        "sample": pa.array(np.asarray(part.samples, np.uint16)[sample]),
        "branch": _constant(_BRANCHES, part.branch, rows),
        "phase": _constant(_PHASES, part.phase, rows),
        "call": pa.array(np.full(rows, call, np.uint16)),
        "layer": pa.array(np.full(rows, part.layer.layer, np.uint16)),
        "head": pa.array(head.astype(np.uint16)),
    }


def _constant(names: pa.Array, name: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.full(rows, names.to_pylist().index(name), np.int8), names)


def _lists(values: Shaped[np.ndarray, "row item"]) -> pa.ListArray:
    """Return each row as a list. Not a fixed-size one: DuckDB leaks memory on those (duckdb#22238)."""
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).ravel()))
