"""Are the maps about the objects? Where a word's map is highest, and how much of it lies in its object's box.

Conventions:
    A word's map is the mean over the layer's heads, its pieces added, of the model's own pass (phase "original").
    hit: the map's largest value lies in a cell whose middle is in the box (the pointing game; of several equal ones
    the first). mass: the part of the map in the box, a cell counting by the area that the box covers. Beside them:
    area, the box's share of the image: the mass of a map that knows nothing; cells, the share of cells whose middle is
    in the box: the hits of a map that knows nothing; other, the mass of the same map in the boxes of the image's other
    targets: maps that light up on any object have it as high.
    Boxes are given, or the detector's of the targets that it found: a missing object has no place.
Source: Zhang et al., Top-down neural attention by excitation backprop, arXiv 1608.00507, on the pointing game.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.evidence.statistics import DRAWS, SEED, cluster_means
from analysis.evidence.tables import IMAGES, TARGET_WORDS
from tracer.store import Store

MEASURES = ("hit", "mass", "area", "cells", "other")
BOX = ["left", "top", "right", "bottom"]
KEY = ["run_id", "sample", "word_idx"]

# A row per image of a run and token of a target's word.
TOKENS = f"""
SELECT t.sample, t.word_idx, t.token
FROM (SELECT DISTINCT run_id, sample, word_idx FROM ({TARGET_WORDS}) WHERE run_id = $run)
JOIN tokens t USING (run_id, sample, word_idx) WHERE t.run_id = $run AND t.branch = 'cond'
ORDER BY t.sample, t.word_idx, t.token"""
STEPS = "SELECT DISTINCT step FROM calls WHERE run_id = $run AND sample = $sample AND kind = 'sample' ORDER BY step"
LAYERS = "SELECT path, map_h, map_w FROM layers WHERE run_id = $run ORDER BY layer"

Box = Float[np.ndarray, "_ 4"]


def pointing_table(
    store: Store, protocol: str, boxes: pd.DataFrame | None = None, method: str | None = None
) -> pd.DataFrame:
    """Return a row per image, word with a box, step and layer, of the runs that kept maps.

    Args:
        store: an open trace with maps.
        protocol: name of the reading of detections.
        boxes: the objects' places where they are known: run_id, sample, word_idx, left, top, right, bottom in pixels;
            None for the detector's boxes of found targets.
        method: whose images; None for all, which takes as many times as long.

    Returns:
        Columns run_id, sample, method, prompt, seed, word_idx, word, step, layer, number (of the layer), hit, mass,
        area, cells, other (NaN where no other target has a box).

    Raises:
        LookupError: no image has both maps and a box.
    """
    asked = {"protocol": protocol}
    images = store.sql(IMAGES, asked)
    images = images if method is None else images[images["method"] == method]
    words = store.sql(f"{TARGET_WORDS} ORDER BY run_id, sample, word_idx", asked)
    words = words[words["found"]] if boxes is None else words.drop(columns=BOX).merge(boxes, on=KEY)
    words = words.merge(images, on=["run_id", "sample"], suffixes=("", "_image")).dropna(subset=BOX)
    kept = store.sql("SELECT run_id FROM runs WHERE capture->>'precision' <> 'none' ORDER BY run_id")["run_id"]
    rows = [row for run in kept[kept.isin(words["run_id"])] for row in _of_run(store, int(run), words, asked)]
    if not rows:
        raise LookupError(f"no image has maps and a box of a target by {protocol!r}")
    return pd.DataFrame(rows)


def _of_run(store: Store, run: int, words: pd.DataFrame, asked: dict[str, str]) -> Iterator[dict[str, object]]:
    layers = store.sql(LAYERS, {"run": run})
    numbers = dict(zip(layers["path"], range(len(layers)), strict=True))
    tokens = store.sql(TOKENS, asked | {"run": run}).groupby(["sample", "word_idx"])["token"].apply(list)
    for sample, together in words[words["run_id"] == run].groupby("sample"):
        steps = store.sql(STEPS, {"run": run, "sample": sample})["step"].tolist()
        size = together[["width", "height"]].to_numpy(float)[0]
        for word_idx, own in together.groupby("word_idx"):
            box, others = (_scaled(part, size) for part in (own, together[together["target"] != own["target"].iat[0]]))
            head = own[["run_id", "sample", "method", "prompt", "seed", "word_idx", "word"]].iloc[0].to_dict()
            for paths in layers.groupby(["map_h", "map_w"], sort=False)["path"].apply(list):
                pieces = [store.maps((run, int(sample)), int(t), layers=paths) for t in tokens[sample, word_idx]]
                maps = np.sum(pieces, axis=0, dtype=np.float64).mean(2)
                for (i, step), (j, path) in product(enumerate(steps), enumerate(paths)):
                    yield (
                        head
                        | {"step": step, "layer": path, "number": numbers[path]}
                        | measured(maps[i, j], box, others)
                    )


def _scaled(words: pd.DataFrame, size: Float[np.ndarray, " 2"]) -> Box:
    return words[BOX].drop_duplicates().to_numpy(float) / np.tile(size, 2)


def measured(cells: Float[np.ndarray, "height width"], own: Box, others: Box) -> dict[str, float]:
    """Return the `MEASURES` of a map.

    Args:
        cells: the map.
        own: boxes of the word's object, (left, top, right, bottom) in shares of the image.
        others: boxes of the image's other targets; none is none.
    """
    inside = covered(cells.shape, own)
    rows, columns = ((np.arange(size) + 0.5) / size for size in cells.shape)
    middles = _any(
        (rows[:, None] >= top) & (rows[:, None] < bottom) & (columns >= left) & (columns < right)
        for left, top, right, bottom in own
    )
    mass = cells.sum()
    return {
        "hit": float(middles.ravel()[np.argmax(cells)]),
        "mass": float((cells * inside).sum() / mass) if mass else np.nan,
        "area": float(inside.mean()),
        "cells": float(middles.mean()),
        "other": float((cells * covered(cells.shape, others)).sum() / mass) if mass and len(others) else np.nan,
    }


def covered(shape: tuple[int, ...], boxes: Box) -> Float[np.ndarray, "height width"]:
    """Return which part of each cell lies in a box; of cells that several boxes touch, the largest part."""
    cover = np.zeros(shape)
    for left, top, right, bottom in np.clip(boxes, 0, 1):
        sides = []
        for size, start, end in ((shape[0], top, bottom), (shape[1], left, right)):
            edges = np.arange(size + 1) / size
            sides.append(np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None) * size)
        cover = np.maximum(cover, np.outer(*sides))
    return cover


def _any(masks) -> np.ndarray:
    return np.logical_or.reduce(list(masks))


def pointing_means(table: pd.DataFrame, draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return the means over words by step and layer, with intervals over prompts.

    Args:
        table: from `pointing_table`.
        draws: how many times prompts are drawn for an interval.
        seed: of the draws.

    Returns:
        A row per step and layer, with each of `MEASURES`, with _low and _high; hit_gain (hit less cells), mass_gain
        (mass less area) and lead (mass less other, of images where another target was found), likewise; words, prompts.

    Raises:
        ValueError: the table is empty.
    """
    gains = {"hit_gain": ("hit", "cells"), "mass_gain": ("mass", "area"), "lead": ("mass", "other")}
    table = table.assign(**{name: table[one] - table[less] for name, (one, less) in gains.items()})
    index = [*KEY, "prompt"]
    wide = table.pivot(index=index, columns=["step", "layer"], values=[*MEASURES, *gains])
    prompts = wide.index.get_level_values("prompt").to_numpy(object)
    places = table[["step", "number", "layer"]].drop_duplicates().sort_values(["step", "number"], kind="stable")
    places = places[["step", "layer"]].reset_index(drop=True)
    cells = pd.MultiIndex.from_frame(places)
    columns: dict[str, np.ndarray] = {}
    for measure in (*MEASURES, *gains):
        means = cluster_means(wide[measure][cells].to_numpy(float), prompts, draws, seed)
        columns |= means.columns(measure)
        columns |= {"words": means.images, "prompts": means.prompts} if measure == "hit" else {}
    return places.assign(**columns)
