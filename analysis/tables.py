"""What the figures show, as queries on the store: SQL in, a tidy DataFrame out, nothing drawn.

Conventions: one grain per table, named in its docstring. Maps are the conditional half's raw probabilities of
sampling passes, special tokens left out, not renormalised; a word of several pieces is its pieces' sum. A map
comes as exactly as it was stored (8-bit codes are off by at most 1/63 of a map's largest value). Runs are given by
number; prompt and seed pair the images of two runs.
"""

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from tracer.store import Store

Heads = Literal["all", "mean"]
OUTCOMES = ("won", "lost", "both found", "both fail")

# Every pixel of every word's map, of some samples, steps and layers; a word's pieces are added up.
_PIXELS = """
WITH cells AS (
    SELECT run_id, sample, phase, step, path AS layer, h, w, head, word_idx, unnest(map) AS value,
           generate_subscripts(map, 1) AS pixel
    FROM attn
    WHERE branch = 'cond' AND call_kind = 'sample' AND word_idx IS NOT NULL AND run_id = $run
      AND list_contains($samples, sample) AND list_contains($steps, step) AND list_contains($layers, path)
), pixels AS (
    SELECT * EXCLUDE (value), sum(value) AS value FROM cells GROUP BY ALL
), named AS (
    SELECT run_id, sample, word_idx, any_value(word) AS word, min(token) AS token,
           bool_or(is_target) AS is_target
    FROM tokens WHERE branch = 'cond' AND word_idx IS NOT NULL GROUP BY ALL
)"""

_FOUND = """
SELECT run_id, sample, seed, prompt, found
FROM samples JOIN outcomes USING (run_id, sample) WHERE protocol = $protocol"""


def violin_values(
    store: Store, run: int, samples: Sequence[int], layer: str, steps: Sequence[int], heads: Heads = "all"
) -> pd.DataFrame:
    """Return a row per (run, sample, step, layer, word[, head], pixel): the points of dominance violins.

    Args:
        store: open store.
        run: number of the run.
        samples: images of the run.
        layer: path of one layer.
        steps: sampling steps.
        heads: "all" pools the heads' pixels, "mean" averages the heads first.

    Returns:
        Columns run_id, sample, seed, step, layer, token (the word's first position), word_idx, word,
        is_target, value; in prompt order.

    Raises:
        LookupError: a sample has no map of that layer at one of the steps.
    """
    head, value = ("head", "value") if heads == "all" else ("-1 AS head", "avg(value) AS value")
    grouped = "" if heads == "all" else "GROUP BY ALL"
    values = store.sql(
        f"""{_PIXELS}, points AS (
            SELECT run_id, sample, step, layer, word_idx, {head}, pixel, {value}
            FROM pixels WHERE phase = 'original' {grouped})
        SELECT run_id, sample, seed, step, layer, token, word_idx, word, is_target, value
        FROM points JOIN named USING (run_id, sample, word_idx) JOIN samples USING (run_id, sample)
        ORDER BY sample, step, word_idx, head, pixel""",
        {"run": run, "samples": list(samples), "steps": list(steps), "layers": [layer]},
    )
    _check_whole(values, run, samples, steps, [layer])
    return values


def overlay_maps(
    store: Store, run: int, samples: Sequence[int], layers: Sequence[str], steps: Sequence[int]
) -> pd.DataFrame:
    """Return a row per (run, sample, phase, step, target word): its mean map over heads and layers.

    Args:
        store: open store.
        run: number of the run.
        samples: images of the run.
        layers: paths of layers whose maps have one size.
        steps: sampling steps; phase "edited" is there only at steps that a method edited.

    Returns:
        Columns run_id, method, sample, seed, phase, step, word_idx, word, h, w, map (row-major list).

    Raises:
        LookupError: a sample has no map of the layers at one of the steps.
        ValueError: the layers' maps differ in size.
    """
    maps = store.sql(
        f"""{_PIXELS}, means AS (
            SELECT run_id, sample, phase, step, word_idx, h, w, pixel, avg(value) AS value
            FROM pixels GROUP BY ALL)
        SELECT run_id, method, sample, seed, phase::VARCHAR AS phase, step, word_idx, word, h, w,
               list(value::FLOAT ORDER BY pixel) AS map
        FROM means JOIN named USING (run_id, sample, word_idx) JOIN samples USING (run_id, sample)
        JOIN runs USING (run_id) WHERE is_target GROUP BY ALL ORDER BY sample, phase, step, word_idx""",
        {"run": run, "samples": list(samples), "steps": list(steps), "layers": list(layers)},
    )
    _check_whole(maps, run, samples, steps, layers)
    if len(sizes := maps[["h", "w"]].drop_duplicates()) > 1:
        raise ValueError(f"layers must have maps of one size, got {sizes.to_records(index=False).tolist()}")
    return maps


def detections(store: Store, runs: Sequence[int], protocol: str) -> pd.DataFrame:
    """Return a row per (run, sample, target): its score, whether it was found, and its box in pixels.

    Returns:
        Columns run_id, method, sample, seed, image (path), target, word_idx (of the target's first word),
        score, found, left, top, right, bottom (NaN where there is no box).
    """
    return store.sql(
        """WITH asked AS (
            SELECT run_id, sample, t->>'text' AS target, (t->>'$.positions[0]')::USMALLINT AS token,
                   string_agg(t->>'text', ', ' ORDER BY t->>'text') OVER (PARTITION BY run_id, sample) AS against
            FROM (SELECT run_id, sample, unnest(from_json(targets, '["JSON"]')) AS t FROM samples))
        SELECT run_id, method, sample, seed, image, target, word_idx, score, found,
               box[1] AS "left", box[2] AS top, box[3] AS "right", box[4] AS bottom
        FROM asked JOIN samples USING (run_id, sample) JOIN runs USING (run_id)
        JOIN tokens USING (run_id, sample, token) JOIN verdicts USING (image_sha256, target, against)
        WHERE branch = 'cond' AND protocol = $protocol AND list_contains($runs, run_id)
        ORDER BY run_id, sample, word_idx""",
        {"runs": list(runs), "protocol": protocol},
    )


def outcomes(store: Store, baseline: int, run: int, protocol: str) -> pd.DataFrame:
    """Return a row per image that both runs made: whether each shows all targets, and who won.

    Returns:
        Columns prompt, seed, baseline, method (booleans), outcome, "won" where only the run shows all
        targets, "lost" where only the baseline does, else "both found" or "both fail".
    """
    return store.sql(
        f"""WITH shown AS ({_FOUND})
        SELECT prompt, seed, a.found AS baseline, b.found AS method,
               CASE WHEN a.found AND b.found THEN 'both found' WHEN b.found THEN 'won'
                    WHEN a.found THEN 'lost' ELSE 'both fail' END AS outcome
        FROM shown a JOIN shown b USING (prompt, seed)
        WHERE a.run_id = $baseline AND b.run_id = $run ORDER BY prompt, seed""",
        {"baseline": baseline, "run": run, "protocol": protocol},
    )


def shares(outcome: pd.Series) -> pd.Series:
    """Return how many images had each outcome, in the order won, lost, both found, both fail."""
    return outcome.value_counts().reindex(OUTCOMES, fill_value=0)


def first_seeds(store: Store, run: int, protocol: str) -> dict[bool, int]:
    """Return the sample of the lowest seed whose image misses a target (False), and that shows all (True).

    A key is absent where the run has no such image.
    """
    first = store.sql(
        f"SELECT found, arg_min(sample, seed) AS sample FROM ({_FOUND}) WHERE run_id = $run GROUP BY found",
        {"run": run, "protocol": protocol},
    )
    return {bool(found): int(sample) for found, sample in first.itertuples(index=False)}


def edited_layers(store: Store, run: int) -> tuple[str, ...]:
    """Return the paths of the layers that a run's method edited, in execution order."""
    edited = store.sql(
        "SELECT path FROM layers WHERE run_id = $run AND layer IN "
        "(SELECT unnest(edited) FROM calls WHERE run_id = $run) ORDER BY layer",
        {"run": run},
    )
    return tuple(edited["path"])


def most_attended_layer(store: Store, run: int, step: int) -> tuple[str, int]:
    """Return path and number of heads of the layer that gives the targets most attention, over all images of a run.

    Attention is m of the view ``dominance``: the mean over heads of the 0.9-quantile of a target's map.

    Raises:
        LookupError: the run has no maps at the step.
    """
    first = store.sql(
        """SELECT path, heads FROM dominance JOIN layers USING (run_id, layer, path)
        WHERE run_id = $run AND step = $step AND phase = 'original'
        GROUP BY layer, path, heads ORDER BY avg(m) DESC, layer LIMIT 1""",
        {"run": run, "step": step},
    )
    if first.empty:
        raise LookupError(f"run {run} has no maps at step {step}")
    return str(first.at[0, "path"]), int(first.at[0, "heads"])


def dominance_by_outcome(store: Store, runs: Sequence[int], protocol: str, step: int) -> pd.DataFrame:
    """Return a row per (run, whether all targets were found): images and their median dominance ratio.

    An image's ratio is the median over layers of largest share / smallest share of the targets, on the
    model's own maps at the step.

    Returns:
        Columns run_id, method, found, images, ratio.
    """
    return store.sql(
        f"""WITH shown AS ({_FOUND}), by_image AS (
            SELECT run_id, sample, median(ratio) AS ratio FROM dominance_ratio
            WHERE phase = 'original' AND step = $step GROUP BY ALL)
        SELECT run_id, method, found, count(*) AS images, median(ratio) AS ratio
        FROM shown JOIN by_image USING (run_id, sample) JOIN runs USING (run_id)
        WHERE list_contains($runs, run_id) GROUP BY ALL ORDER BY run_id, found""",
        {"runs": list(runs), "protocol": protocol, "step": step},
    )


def _check_whole(
    rows: pd.DataFrame, run: int, samples: Sequence[int], steps: Sequence[int], layers: Sequence[str]
) -> None:
    there = set(rows[["sample", "step"]].itertuples(index=False, name=None))
    absent = [(sample, step) for sample in samples for step in steps if (sample, step) not in there]
    if absent:
        raise LookupError(f"run {run} has no maps of {', '.join(layers)} at (sample, step) {absent}")
