"""The targets' statistics of many traced images, as one array, and the tables made of it.

    shares = target_shares(store, protocol.name)
    dominance_table(shares)              # a row per image, step and layer

Conventions:
    Maps of the conditional half's sampling passes; of a step with several passes the first. They are the model's own
    (phase "original"), or those that it was made to use: edited where a method edits. m of a word is the 0.9-quantile
    of its map, as in the view ``dominance``; its share is m over the sum of m of all the targets' words. A target of
    several words counts with each of them, as in that view.
    Only images of which the detection protocol has verdicts on all targets count.
    SQL selects and orders; numpy adds, so that the same trace gives the same bits with any number of threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from tracer.store import Store

RATIO_CAP = 1e4  # of largest to smallest share: a word that gets nothing at all must not outweigh all other images

PerImage = Float[np.ndarray, "image *cell"]
Grid = Float[np.ndarray, "image step layer head word"]

# A row per image and word of a target: was it found, and where? word_idx: its place in the prompt. Boxes in pixels.
TARGET_WORDS = """
WITH asked AS (
    SELECT s.run_id, s.sample, s.image_sha256, t->>'text' AS target,
           unnest(from_json(t->'positions', '["USMALLINT"]')) AS token
    FROM (SELECT *, unnest(from_json(targets, '["JSON"]')) AS t FROM samples) s
), joined AS (
    SELECT run_id, sample, array_to_string(list_sort(list_distinct(list(target))), ', ') AS against
    FROM asked GROUP BY run_id, sample
)
SELECT DISTINCT a.run_id, a.sample, t.word_idx, t.word, a.target, v.found, v.score,
       v.box[1] AS "left", v.box[2] AS top, v.box[3] AS "right", v.box[4] AS bottom
FROM asked a JOIN joined USING (run_id, sample)
JOIN tokens t ON t.run_id = a.run_id AND t.sample = a.sample AND t.token = a.token AND t.branch = 'cond'
JOIN verdicts v ON v.image_sha256 = a.image_sha256 AND v.target = a.target AND v.against = joined.against
WHERE v.protocol = $protocol"""

# A row per image that has verdicts. found: all of its targets were.
IMAGES = f"""
SELECT run_id, sample, any_value(method) AS method, any_value(prompt) AS prompt, any_value(seed) AS seed,
       any_value(r.height) AS height, any_value(r.width) AS width, bool_and(found) AS found
FROM ({TARGET_WORDS}) JOIN samples USING (run_id, sample) JOIN runs r USING (run_id)
GROUP BY run_id, sample ORDER BY method, prompt, seed, run_id, sample"""

# A row per image, step, layer, head and target's word: m and the mean of this head's map.
HEADS = f"""
WITH chosen AS (SELECT DISTINCT run_id, sample, word_idx FROM ({TARGET_WORDS})),
first_calls AS (
    SELECT run_id, sample, step, min(call) AS call FROM calls WHERE kind = 'sample' GROUP BY run_id, sample, step
)
SELECT s.run_id, s.sample, c.step, s.layer, s.head, s.word_idx, s.p90 AS m, s.mean AS mean
FROM head_stats s JOIN chosen USING (run_id, sample, word_idx) JOIN first_calls c USING (run_id, sample, call)
WHERE s.branch = 'cond' AND s.word_idx IS NOT NULL"""
OWN = f"{HEADS} AND s.phase = 'original'"
USED = f"""{HEADS}
QUALIFY s.phase = max(s.phase) OVER (PARTITION BY s.run_id, s.sample, s.call, s.layer, s.head, s.word_idx)"""


@dataclass(frozen=True)
class TargetShares:
    """What every head gave to every target of every image.

    Attributes:
        images: a row per image: run_id, sample, method, prompt, seed, height, width, found (all targets were).
        words: a row per image and target's word, in prompt order: image (row of `images`), slot (place among the
            image's words), word_idx, word, target, found, score, left, top, right, bottom.
        steps: sampling steps.
        layers: paths, in order of execution.
        m: of each head and word; NaN where an image has fewer words, or a layer fewer heads, than others.
        mean: of the same maps over their pixels.
    """

    images: pd.DataFrame
    words: pd.DataFrame
    steps: tuple[int, ...]
    layers: tuple[str, ...]
    m: Grid
    mean: Grid

    @property
    def lacking(self) -> Bool[np.ndarray, "image word"]:
        """Which words' targets were not found; False where an image has fewer words."""
        lacking = np.zeros((len(self.images), self.m.shape[-1]), bool)
        lacking[self.words["image"], self.words["slot"]] = ~self.words["found"].to_numpy(bool)
        return lacking

    @property
    def missing(self) -> Bool[np.ndarray, " image"]:
        """Which images miss at least one target."""
        return ~self.images["found"].to_numpy(bool)

    @property
    def prompts(self) -> np.ndarray:
        """The prompt of each image."""
        return self.images["prompt"].to_numpy(object)

    def of(self, method: str) -> "TargetShares":
        """Return the images of one method.

        Raises:
            ValueError: there is none.
        """
        chosen = (self.images["method"] == method).to_numpy()
        if not chosen.any():
            known = ", ".join(sorted(set(self.images["method"])))
            raise ValueError(f"method must be one of {known}, got {method!r}")
        place = np.cumsum(chosen) - 1
        words = self.words[chosen[self.words["image"]]]
        words = words.assign(image=place[words["image"]]).reset_index(drop=True)
        images = self.images[chosen].reset_index(drop=True)
        return TargetShares(images, words, self.steps, self.layers, self.m[chosen], self.mean[chosen])

    def by_layer(self) -> Float[np.ndarray, "image step layer word"]:
        """Return each word's share in a layer, of the means over its heads."""
        mean = self.quantile()
        return mean / np.nansum(mean, -1, keepdims=True)

    def quantile(self) -> Float[np.ndarray, "image step layer word"]:
        """Return m of each word in a layer, the mean over its heads; NaN where an image has fewer words."""
        return _over_heads(self.m)

    def mass(self) -> Float[np.ndarray, "image step layer"]:
        """Return which part of a layer's attention all the targets' words get together."""
        return np.nansum(_over_heads(self.mean), -1)

    def by_head(self) -> Float[np.ndarray, "image step layer head word"]:
        """Return each word's share in a head; NaN where a layer has fewer heads."""
        total = np.nansum(self.m, -1, keepdims=True)
        return self.m / np.where(total > 0, total, np.nan)


def _over_heads(grid: Grid) -> Float[np.ndarray, "image step layer word"]:
    heads = (~np.isnan(grid)).sum(3)
    return np.where(heads > 0, np.nansum(grid, 3) / np.maximum(heads, 1), np.nan)


def target_shares(
    store: Store, protocol: str, runs: Sequence[int] | None = None, *, used: bool = False
) -> TargetShares:
    """Return what the heads gave to the targets of all images that have detections.

    Args:
        store: an open trace with statistics.
        protocol: name of the reading of detections, as in the view ``verdicts``.
        runs: numbers of runs; None for all.
        used: of the maps that the network was made to use, not of those that it computed itself.

    Raises:
        LookupError: no traced image has such detections.
        ValueError: an image was made twice (by one method from one prompt and seed), or images differ in the layers,
            steps or heads that were kept.
    """
    asked = {"protocol": protocol}
    images = store.sql(IMAGES, asked)
    if runs is not None:
        images = images[images["run_id"].isin(list(runs))].reset_index(drop=True)
    if images.empty:
        raise LookupError(f"no traced image has verdicts of {protocol!r}")
    twice = images.duplicated(["method", "prompt", "seed"])
    if twice.any():
        first = images.loc[twice, ["method", "prompt", "seed"]].iloc[0].tolist()
        raise ValueError(f"images must be one per method, prompt and seed, got two of {first}: choose runs")
    words = _placed(store.sql(f"{TARGET_WORDS} ORDER BY run_id, sample, word_idx", asked), images)
    words["slot"] = words.groupby("image").cumcount()
    words = words.drop(columns=["run_id", "sample"])
    paths = store.sql("SELECT run_id, layer, path FROM layers")  # not in each of a million rows
    return _filled(images, words, _placed(store.sql(USED if used else OWN, asked), images), paths)


def _placed(rows: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the images, with the image's row as `image`."""
    keys = _key(images)
    order = np.argsort(keys)
    place = np.minimum(np.searchsorted(keys[order], _key(rows)), len(keys) - 1)
    known = keys[order][place] == _key(rows)
    return rows[known].assign(image=order[place[known]]).reset_index(drop=True)


def _key(rows: pd.DataFrame, second: str = "sample") -> np.ndarray:
    return rows["run_id"].to_numpy(np.int64) * 65_536 + rows[second].to_numpy(np.int64)


def _layers(rows: pd.DataFrame, paths: pd.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the paths of the rows' layers in order of execution, and the place of each row's."""
    keys, places = np.unique(_key(rows, "layer"), return_inverse=True)
    named = pd.Series(paths["path"].to_numpy(object), _key(paths, "layer")).loc[keys]
    order = pd.Series(keys % 65_536, named.to_numpy(object)).groupby(level=0).min().sort_values(kind="stable")
    return tuple(order.index), order.index.get_indexer(named.to_numpy(object))[places]


def _filled(images: pd.DataFrame, words: pd.DataFrame, rows: pd.DataFrame, paths: pd.DataFrame) -> TargetShares:
    """Put every row into its place, and see that none is missing."""
    if rows.empty:
        raise LookupError("the images have no statistics of their targets")
    layers, layer = _layers(rows, paths)
    steps = np.unique(rows["step"])
    slots = np.full((len(images), int(words["word_idx"].max()) + 1), -1)
    slots[words["image"], words["word_idx"]] = words["slot"]
    slot = slots[rows["image"], rows["word_idx"]]
    heads = rows["head"].to_numpy(np.int64)
    shape = (len(images), len(steps), len(layers), int(heads.max()) + 1, int(words["slot"].max()) + 1)
    m, mean = np.full(shape, np.nan), np.full(shape, np.nan)
    places = rows["image"].to_numpy(), np.searchsorted(steps, rows["step"]), layer, heads, slot
    m[places], mean[places] = rows["m"], rows["mean"]
    in_layer = np.zeros((len(layers), shape[3]), bool)
    in_layer[layer, heads] = True
    in_image = np.zeros((len(images), shape[4]), bool)
    in_image[words["image"], words["slot"]] = True
    wanted = in_layer[None, None, :, :, None] & in_image[:, None, None, None, :]
    absent = (np.isnan(m) & wanted).any((1, 2, 3, 4))
    if absent.any():
        first = images.loc[absent, ["method", "prompt", "seed"]].iloc[0].tolist()
        raise ValueError(
            f"images must all have the same steps, layers and heads, got fewer in {absent.sum()} of {len(images)} "
            f"images, such as {first}: choose runs that kept the same"
        )
    return TargetShares(images, words, tuple(int(step) for step in steps), layers, m, mean)


def top_share(shares: Float[np.ndarray, "*cell word"]) -> Float[np.ndarray, "*cell"]:
    """Return the share of the most dominant word; NaN where there is none."""
    top = np.where(np.isnan(shares), -1.0, shares).max(-1)
    return np.where(top < 0, np.nan, top)


def share_ratio(shares: Float[np.ndarray, "*cell word"]) -> Float[np.ndarray, "*cell"]:
    """Return the largest share over the smallest, at most `RATIO_CAP`; NaN where there is none."""
    least = np.where(np.isnan(shares), np.inf, shares).min(-1)
    top = top_share(shares)
    return np.minimum(top / np.maximum(least, top / RATIO_CAP), RATIO_CAP)


def lacking_share(shares: Float[np.ndarray, "image *cell word"], lacking: Bool[np.ndarray, "image word"]) -> PerImage:
    """Return the mean share of the words that are missing; NaN for images that miss none, or all.

    Where all words are missing their mean share says nothing: it is one over their number.
    """
    chosen = _mixed(shares, lacking)
    counts = chosen.sum(-1)
    return np.where(counts > 0, np.where(chosen, shares, 0).sum(-1) / np.maximum(counts, 1), np.nan)


def _mixed(shares: Float[np.ndarray, "image *cell word"], lacking: Bool[np.ndarray, "image word"]) -> np.ndarray:
    """Return which words are missing, in the cells of images that miss some of theirs and not all."""
    chosen = lacking.reshape(len(lacking), *[1] * (shares.ndim - 2), -1) & ~np.isnan(shares)
    return chosen & (chosen.sum(-1) < (~np.isnan(shares)).sum(-1))[..., None]


def dominance_table(shares: TargetShares) -> pd.DataFrame:
    """Return a row per image, step and layer.

    Returns:
        Columns run_id, sample, method, prompt, seed, found, step, layer, share (of the most dominant word), ratio
        (largest over smallest), missing_share (mean share of the missing words where some are found; else NaN).
    """
    layer = shares.by_layer()
    count = len(shares.steps) * len(shares.layers)
    names = ["run_id", "sample", "method", "prompt", "seed", "found"]
    table = shares.images.loc[shares.images.index.repeat(count), names].reset_index(drop=True)
    return table.assign(
        step=np.tile(np.repeat(shares.steps, len(shares.layers)), len(shares.images)),
        layer=np.tile(np.array(shares.layers, object), len(shares.images) * len(shares.steps)),
        share=top_share(layer).ravel(),
        ratio=share_ratio(layer).ravel(),
        missing_share=lacking_share(layer, shares.lacking).ravel(),
    )
