"""Scores to a table: every method's mean of every metric, how sure it is, and whether it differs from the baseline.

Conventions:
    Prompts and seeds are both drawn from many: where all prompts have the same two or more seeds, intervals and tests
    are two-way (`analysis.stats.two_way_interval`); else they are over prompts, and hold for these seeds only; of a
    single prompt they are over its seeds, and hold for it only. Where no two prompts share a seed they are over prompts
    and seeds, which are drawn together. The column `interval` says which.
    p-values are corrected by Holm over all differences of the table.
    Methods are compared on the same prompts and seeds. A missing picture is an error; or, if that is allowed, its cell
    is left out for all methods (`cells`), or each method is compared on what it shares with the baseline (`pairwise`).
    LPIPS tells how far an image is from the baseline's: less is closer, not better.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.significance import holm, matched_rank_biserial, paired_permutation, two_way_test
from analysis.stats import Interval, bootstrap_rate, two_way_interval, win_tie_loss
from metrics.protocols import Protocol
from tracer.store import Store

SEED = 2411_00640
SHOWN = 10  # missing cells that an error names
TWO_WAY, PROMPTS, SEEDS = "prompts and seeds", "prompts; these seeds only", "seeds; this prompt only"
OWN = "prompts, each with seeds of its own"

Matrix = Float[np.ndarray, "prompt seed"]


class Unbalanced(ValueError):
    """Methods that were to be compared lack pictures of some prompts or seeds."""


@dataclass(frozen=True)
class Cells:
    """One metric's values of all methods, on the same prompts and seeds."""

    metric: str
    protocol: str
    by_method: Mapping[str, Matrix]
    images: int
    crossed: bool  # all prompts have the same seeds, at least two
    own: bool = False  # no two prompts have a seed in common


def picture_values(store: Store, protocols: Sequence[Protocol], methods: Sequence[str], baseline: str) -> pd.DataFrame:
    """Return the values of the view `picture_values` under some protocols.

    Raises:
        ValueError: the protocols are of different worlds.
    """
    if len({protocol.world for protocol in protocols}) > 1:
        raise ValueError(f"protocols must be of one world, got {', '.join(p.name for p in protocols)}")
    return store.sql(
        "SELECT * EXCLUDE (path) FROM picture_values "
        "WHERE list_contains($names, protocol) AND list_contains($methods, method) "
        "AND (compared_with IS NULL OR compared_with = $baseline) "
        "ORDER BY list_position($names, protocol), metric, prompt_id, prompt, seed",
        {"names": [protocol.name for protocol in protocols], "methods": list(methods), "baseline": baseline},
    )


def cells(values: pd.DataFrame, methods: Sequence[str], baseline: str, allow_missing: bool = False) -> list[Cells]:
    """Return each metric's matrices.

    Args:
        values: from `picture_values`.
        methods: in the order of the table.
        baseline: the method that LPIPS compares with, and so has none of.
        allow_missing: compare on what all methods have.

    Raises:
        Unbalanced: a method lacks pictures that others have.
    """
    parts = []
    for _, part in values.groupby(["protocol", "metric"], sort=False):
        metric, protocol = str(part["metric"].iat[0]), str(part["protocol"].iat[0])
        having = [method for method in methods if method != baseline or not metric.startswith("lpips")]
        parts.append(_cells(metric, protocol, part, having, allow_missing))
    return parts


def lacking(values: pd.DataFrame, methods: Sequence[str], baseline: str) -> list[str]:
    """Return what is missing of the values, a line per metric, method and prompt; arguments as in `cells`."""
    found = []
    for metric, part in values.dropna(subset="value").groupby("metric", sort=False):
        having = [method for method in methods if method != baseline or not str(metric).startswith("lpips")]
        counts = part.groupby(["protocol", "prompt_id", "prompt", "seed", "method"], dropna=False, sort=False).size()
        wide = pd.DataFrame(counts.unstack("method")).reindex(columns=having)
        for method in having:
            absent = Counter(wide.index[wide[method].isna().to_numpy()].get_level_values("prompt"))
            found += [f"{method} on {prompt!r} ({metric} of {n} images)" for prompt, n in absent.items()]
    return found


def unbalanced(absent: Sequence[str]) -> Unbalanced:
    """Return the error that names what is missing, lines as from `lacking`: the first `SHOWN` of them, and how many."""
    more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
    listed = "; ".join(absent[:SHOWN])
    return Unbalanced(f"cells are missing: {listed}{more}; --allow-missing compares on what there is")


def _cells(metric: str, protocol: str, part: pd.DataFrame, methods: Sequence[str], allow_missing: bool) -> Cells:
    keys = ["prompt_id", "prompt", "seed", "method"]  # a pivot table would take every prompt with every prompt's id
    wide = part.groupby(keys, dropna=False)["value"].mean().unstack("method")
    wide = wide.reindex(columns=list(methods)).dropna(how="all")
    lacking = wide.isna().sum()
    if lacking.any() and not allow_missing:
        said = ", ".join(f"{name} lacks {count}" for name, count in lacking.items() if count)
        raise Unbalanced(f"methods must have the same prompts and seeds, {said} of {len(wide)} images ({metric})")
    whole = wide.dropna()
    if whole.empty:
        raise Unbalanced(f"methods must share at least one prompt and seed, {', '.join(methods)} share none ({metric})")
    prompts, seeds = whole.index.droplevel("seed"), whole.index.get_level_values("seed")
    count = prompts.nunique(dropna=False)
    full = len(whole) == count * seeds.nunique(dropna=False)
    if full:
        grids = {method: whole[method].unstack("seed") for method in methods}
    else:  # each prompt counts by its mean; every prompt with every seed of all would be millions of cells
        means = pd.DataFrame(whole.groupby(["prompt_id", "prompt"], dropna=False).mean())
        grids = {method: means[[method]] for method in methods}
    matrices = {method: grid.to_numpy(np.float64) for method, grid in grids.items()}
    first, own = next(iter(matrices.values())), count > 1 and len(whole) == seeds.nunique(dropna=False)
    return Cells(metric, protocol, matrices, len(whole), full and min(first.shape) > 1, own)


def scoreboard(parts: Sequence[Cells], baseline: str) -> pd.DataFrame:
    """Return a row per metric and method.

    Returns:
        Columns metric, protocol, method, prompts, seeds, images, interval, value, value_low, value_high; and, but for
        the baseline and LPIPS, difference, difference_low, difference_high, p, p_holm, rank_biserial, better, equal,
        worse (prompts).
    """
    lines = [_line(part, method, baseline) for part in parts for method in part.by_method]
    return _corrected(pd.DataFrame(lines))


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with p-values by Holm over all its differences."""
    if "p" in table:
        tested = table["p"].dropna()
        corrected = holm({str(index): p for index, p in tested.items()})
        table["p_holm"] = [corrected.get(str(index), np.nan) for index in table.index]
    return table


def pairwise(values: pd.DataFrame, methods: Sequence[str], baseline: str) -> pd.DataFrame:
    """Return the rows of `scoreboard` where methods lack pictures: each on those that it shares with the baseline.

    So two rows may be of different pictures; their numbers are in the columns. A method that shares none has no row.

    Raises:
        Unbalanced: the baseline has no picture.
    """
    boards = []
    for method in methods:
        pair = list(dict.fromkeys((baseline, method)))
        if parts := _shared(values[values["method"].isin(pair)], pair, baseline):
            board = scoreboard(parts, baseline)
            boards.append(board[board["method"] == method])
    if not boards:
        raise Unbalanced(f"the baseline must have pictures, {baseline} has none")
    order = {method: place for place, method in enumerate(methods)}
    table = pd.concat(boards).sort_values("method", key=lambda names: names.map(order), kind="stable")
    metrics = list(dict.fromkeys(values["metric"]))
    table = table.sort_values("metric", key=lambda names: names.map(metrics.index), kind="stable", ignore_index=True)
    return _corrected(table)


def _shared(values: pd.DataFrame, pair: Sequence[str], baseline: str) -> list[Cells]:
    """Return the metrics in which two methods, or the baseline alone, have pictures in common."""
    found = []
    for _, part in values.groupby(["protocol", "metric"], sort=False):
        try:
            found += cells(part, pair, baseline, allow_missing=True)
        except Unbalanced:
            continue
    return found


def _line(part: Cells, method: str, baseline: str) -> dict[str, object]:
    values = part.by_method[method]
    line: dict[str, object] = {
        "metric": part.metric,
        "protocol": part.protocol,
        "method": method,
        "prompts": len(values),
        "seeds": values.shape[1],
        "images": part.images,
        "interval": TWO_WAY if part.crossed else SEEDS if len(values) == 1 else OWN if part.own else PROMPTS,
        **_interval(values, part.crossed).columns("value"),
    }
    plain = part.by_method.get(baseline)
    return line if plain is None or method == baseline else line | _difference(values, plain, part.crossed)


def _difference(values: Matrix, plain: Matrix, crossed: bool) -> dict[str, object]:
    record = win_tie_loss(values, plain)
    return {
        **_interval(values - plain, crossed).columns("difference"),
        "p": _p_value(values, plain, crossed),
        "rank_biserial": matched_rank_biserial(values, plain),
        "better": record.wins,
        "equal": record.ties,
        "worse": record.losses,
    }


def _p_value(values: Matrix, plain: Matrix, crossed: bool) -> float:
    if crossed and np.ptp(values - plain):
        return two_way_test(values, plain).p
    return paired_permutation(_drawn(values), _drawn(plain), np.random.default_rng(SEED)).p


def _interval(values: Matrix, crossed: bool) -> Interval:
    found = two_way_interval(values) if crossed else bootstrap_rate(_drawn(values), np.random.default_rng(SEED))
    if np.isin(values, (0, 1)).all():
        return found.within(0.0, 1.0)
    return found.within(-1.0, 1.0) if np.isin(values, (-1, 0, 1)).all() else found


def _drawn(values: Matrix) -> Float[np.ndarray, "drawn _"]:
    """Return what is drawn from many as rows: prompts, or the seeds of a single prompt."""
    return values if len(values) > 1 else values.T
