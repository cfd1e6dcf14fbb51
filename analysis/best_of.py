"""The best of n plain images: what as many passes of the network buy without any method.

Conventions: a score is larger for better images. The choice is made by another score than the one judged by: who
chooses and judges by one detector has found only the luck of n draws.
"""

from collections.abc import Sequence

import pandas as pd

CHOSEN = "best of {count}"


def best_of(
    values: pd.DataFrame, count: int, by: str, seeds: Sequence[int] | None = None, method: str = "plain"
) -> pd.DataFrame:
    """Return the values of the images chosen among every `count` seeds, as a method of its own.

    The seeds are dealt out in turn: of eight and `count` 2, seed 0 stands beside 4, 1 beside 5. The one with the larger
    score is taken under the smaller seed's number, so that it pairs with the plain image of that seed.

    Args:
        values: a row per image and metric, with the columns method, prompt, seed, metric, value.
        count: how many images one is chosen from.
        by: the metric that chooses.
        seeds: to deal out; all of the method's by default.
        method: whose images these are.

    Raises:
        ValueError: the seeds cannot be dealt out evenly, or an image has no such score.
    """
    mine = values[values["method"] == method]
    drawn = sorted(mine["seed"].unique().tolist()) if seeds is None else list(seeds)
    if count < 1 or not drawn or len(drawn) % count:
        raise ValueError(f"seeds must be a multiple of {count}, to choose one of each {count}, got {len(drawn)}")
    places = len(drawn) // count
    group = {seed: drawn[index % places] for index, seed in enumerate(drawn)}
    mine = mine[mine["seed"].isin(drawn)]
    scores = mine[mine["metric"] == by].set_index(["prompt", "seed"])["value"]
    wanted = pd.MultiIndex.from_product([mine["prompt"].unique(), drawn], names=["prompt", "seed"])
    if missing := len(wanted.difference(scores.index)):
        raise ValueError(f"every image must have a {by} to be chosen by, {missing} have none")
    ranked = scores.reset_index().sort_values(["value", "seed"], ascending=[False, True], kind="stable")
    ranked["group"] = ranked["seed"].map(group)
    taken = ranked.drop_duplicates(["prompt", "group"]).set_index(["prompt", "seed"])["group"]
    chosen = mine.set_index(["prompt", "seed"]).join(taken, how="inner").reset_index()
    return chosen.assign(method=CHOSEN.format(count=count), seed=chosen["group"]).drop(columns="group")
