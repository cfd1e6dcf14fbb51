"""A word's maps as one array: which rows of a trace they are, and from codes to numbers.

Conventions: what is asked for is a whole grid of steps, layers, heads and tokens, or an error: a hole in it would be
read as attention of zero.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from tracer.rows import Branch, Phase

_TABLES = {
    "uint8": ("maps", "q, low, m.step AS level"),
    "float16": ("maps_f16", "bits"),
    "float32": ("maps_f32", "map"),
}
_LABELS = {"sos": "[start]", "eos": "[end]", "padsum": "[padding]", "image": "[image]"}
_REPEAT = re.compile(r"(?P<text>.+)#(?P<number>\d+)", re.DOTALL)


@dataclass(frozen=True)
class Chosen:
    """Which of a word's maps are wanted, see `Store.maps`."""

    steps: Sequence[int] | int | None = None
    layers: Sequence[int | str] | int | str | None = None
    size: int | None = None
    phase: Phase = "original"
    branch: Branch = "cond"


def read_maps(
    cursor: duckdb.DuckDBPyConnection, image: int | tuple[int, int], word: str | int, chosen: Chosen
) -> Float32[np.ndarray, "step layer head height width"]:
    """Return the maps; arguments and errors are those of `Store.maps`."""
    run_id, sample = _image(cursor, image)
    tokens = _tokens(cursor, run_id, sample, chosen.branch, word)
    layers, heads, size = _layers(cursor, run_id, sample, chosen)
    calls = _calls(cursor, run_id, sample, chosen)
    asked = f"run {run_id}, sample {sample}, {word!r}, {chosen.phase}, {chosen.branch}"
    if not calls:
        raise LookupError(f"{asked}: no sampling pass of step {chosen.steps} was recorded")
    precision = json.loads(_rows(cursor, "SELECT capture FROM runs WHERE run_id = ?", [run_id])[0][0])["precision"]
    if precision not in _TABLES or not heads:
        raise LookupError(f"{asked}: the run kept statistics only, no maps")
    table, columns = _TABLES[precision]
    found = cursor.sql(
        f"SELECT call, layer, {columns} FROM {table} m WHERE run_id = ? AND sample = ? AND branch = ? AND phase = ? "
        # of the columns' own type: what is cast skips no part of the file
        "AND list_contains(?::USMALLINT[], call) AND list_contains(?::USMALLINT[], layer) "
        "AND list_contains(?::USMALLINT[], token) ORDER BY call, layer, head, token",
        params=[run_id, sample, chosen.branch, chosen.phase, calls, layers, tokens],
    ).to_arrow_table()
    passes = len(set(found["call"].to_pylist()))  # an edit acts on some of the steps only
    shape = (passes, len(layers), heads, len(tokens))
    if not passes or found.num_rows != np.prod(shape) or (chosen.phase == "original" and passes != len(calls)):
        grid = " x ".join(map(str, (len(calls), *shape[1:])))
        raise LookupError(f"{asked}: {found.num_rows} maps, of {grid} passes x layers x heads x tokens")
    return _decoded(found, precision).reshape(*shape, *size).sum(axis=3)


def _rows(cursor: duckdb.DuckDBPyConnection, query: str, params: list[object]) -> list[tuple]:
    return cursor.execute(query, params).fetchall()


def _image(cursor: duckdb.DuckDBPyConnection, image: int | tuple[int, int]) -> tuple[int, int]:
    images = _rows(cursor, "SELECT run_id, sample FROM samples ORDER BY ALL", [])
    if isinstance(image, tuple):
        if image in images:
            return image
    elif -len(images) <= image < len(images):
        return images[image]
    raise LookupError(f"image must be one of {len(images)} from 0, or (run_id, sample), got {image}")


def _tokens(cursor: duckdb.DuckDBPyConnection, run_id: int, sample: int, branch: Branch, word: str | int) -> list[int]:
    """Return the numbers of the tokens that are meant."""
    tokens = _rows(
        cursor,
        "SELECT token, word_idx, word, kind::VARCHAR, is_kept FROM tokens "
        "WHERE run_id = ? AND sample = ? AND branch = ? ORDER BY token",
        [run_id, sample, branch],
    )
    if isinstance(word, int):
        wanted = [word]
    elif word in _LABELS.values():
        wanted = [token for token, _, _, kind, _ in tokens if _LABELS.get(kind) == word]
    else:
        words = {index: text for _, index, text, _, _ in tokens if index is not None}
        indices = _find(words, word)
        wanted = [token for token, index, _, _, _ in tokens if index in indices]
    kept = {token for token, _, _, _, is_kept in tokens if is_kept}
    if not wanted or not kept.issuperset(wanted):
        raise LookupError(f"{word!r} of run {run_id}, sample {sample}, {branch} was not recorded")
    return wanted


def _find(words: dict[int, str], word: str) -> list[int]:
    """Return the ordinals of the words of a phrase."""
    text, number = word, 1
    texts = {index: one.lower() for index, one in words.items()}
    places = _places(texts, text)
    if not places and (repeat := _REPEAT.fullmatch(word)):
        text, number = repeat["text"], int(repeat["number"])
        places = _places(texts, text)
    if not places:
        raise ValueError(f"word {text!r} is not in the prompt; words are {', '.join(words.values())}")
    if not 1 <= number <= len(places):
        raise ValueError(f"word {word!r} must name one of the {len(places)} {text!r} in the prompt")
    return places[number - 1]


def _places(texts: dict[int, str], phrase: str) -> list[list[int]]:
    parts = phrase.lower().split()
    runs = [list(range(start, start + len(parts))) for start in texts]
    return [run for run in runs if parts and [texts.get(index) for index in run] == parts]


def _edited(cursor: duckdb.DuckDBPyConnection, run_id: int, sample: int) -> set[int]:
    """Return the layers that an edit acted on, at some step."""
    query = "SELECT DISTINCT unnest(edited) FROM calls WHERE run_id = ? AND sample = ? AND kind = 'sample'"
    return {layer for (layer,) in _rows(cursor, query, [run_id, sample])}


def _layers(
    cursor: duckdb.DuckDBPyConnection, run_id: int, sample: int, chosen: Chosen
) -> tuple[list[int], int, tuple[int, int]]:
    """Return the layers' numbers, and how many heads and which size their maps have."""
    rows = _rows(
        cursor,
        "SELECT layer, path, map_heads, map_h, map_w FROM layers WHERE run_id = ? ORDER BY layer",
        [run_id],
    )
    if chosen.phase == "edited":
        edited = _edited(cursor, run_id, sample)
        rows = [row for row in rows if row[0] in edited]
    wanted = chosen.layers
    names = None if wanted is None else [wanted] if isinstance(wanted, int | str) else list(wanted)
    picked = [
        row
        for row in rows
        if (names is None or row[0] in names or any(isinstance(n, str) and fnmatch(row[1], n) for n in names))
        and chosen.size in (None, row[3])
    ]
    if not picked:
        have = ", ".join(f"{path} ({h}x{w})" for _, path, _, h, w in rows) or "none"
        which = "edited" if chosen.phase == "edited" else "recorded"
        raise LookupError(f"no {which} layer fits layers={wanted}, size={chosen.size}; run {run_id} has {have}")
    if len({row[2:] for row in picked}) > 1:
        have = ", ".join(f"{path} ({heads} heads of {h}x{w})" for _, path, heads, h, w in picked)
        raise ValueError(f"layers must have maps of one size and as many heads, choose by layers= or size=; got {have}")
    return [row[0] for row in picked], picked[0][2], picked[0][3:]


def _calls(cursor: duckdb.DuckDBPyConnection, run_id: int, sample: int, chosen: Chosen) -> list[int]:
    rows = _rows(
        cursor,
        "SELECT call, step FROM calls WHERE run_id = ? AND sample = ? AND kind = 'sample' "
        "AND list_contains(halves, ?::branch) ORDER BY call",
        [run_id, sample, chosen.branch],
    )
    if chosen.steps is None:
        return [call for call, _ in rows]
    wanted = {chosen.steps} if isinstance(chosen.steps, int) else set(chosen.steps)
    if missing := sorted(wanted - {step for _, step in rows}):
        raise LookupError(f"steps {missing} of run {run_id}, sample {sample} were not recorded")
    return [call for call, step in rows if step in wanted]


def _decoded(found: pa.Table, precision: str) -> np.ndarray:
    """Return the rows' values, one map after the other."""
    if precision == "float32":
        return found["map"].combine_chunks().flatten().to_numpy()
    if precision == "float16":
        return found["bits"].combine_chunks().flatten().to_numpy().view(np.float16).astype(np.float32)
    codes = found["q"].combine_chunks().flatten().to_numpy().reshape(found.num_rows, -1)
    low, level = (found[name].to_numpy()[:, None] for name in ("low", "level"))
    return np.square(low + level * codes.astype(np.float32))
