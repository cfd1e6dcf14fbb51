"""What methods cost beside the baseline, as columns of a paper's table.

Conventions: a cost is a median ratio as in `analysis.costs`, of an experiment's batches; where all prompts have one
ratio, as counts of passes often do, there is no interval.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pandas as pd

from analysis.costs import median_ratio
from analysis.paper.captions import EMOJI, told
from analysis.paper.cells import COSTS, Cell, Column, Number, PaperTable, Row, style_of

NOWHERE: Mapping[str, Collection[str]] = MappingProxyType({})

Costs = Mapping[str, Mapping[str, Mapping[str, Number]]]  # by title, method, metric


def cost_numbers(costs: pd.DataFrame, baseline: str) -> dict[str, dict[str, Number]]:
    """Return each method's cost columns, by metric; the baseline has none.

    Args:
        costs: a row per method and prompt of one batch; columns method, prompt_id, images, seconds, passes (of the
            network), gradient_passes (those of them with a gradient).
        baseline: the method whose batch of the same prompt each is compared with.

    Raises:
        ValueError: a method has a prompt twice; the baseline lacks one or takes no time; or a prompt's batches differ
            in size.
    """
    if costs.duplicated(["method", "prompt_id"]).any():
        raise ValueError("costs must have one row per method and prompt_id, got several")
    wide = costs.pivot(index="prompt_id", columns="method")
    if baseline not in wide["seconds"] or not bool((wide["seconds"][baseline] > 0).all()):
        raise ValueError(f"costs must have positive seconds of {baseline!r} for every prompt, got others")
    if (wide["images"].nunique(axis=1) > 1).any():
        raise ValueError("costs must be of batches of one size for each prompt, got several")
    found: dict[str, dict[str, Number]] = {}
    graded = bool((costs["gradient_passes"] > 0).any())
    for method in [name for name in costs["method"].unique() if name != baseline]:
        plain = wide.xs(baseline, axis=1, level="method")[wide["seconds"][method].notna()]
        ours = wide.xs(method, axis=1, level="method").loc[plain.index]
        found[method] = {
            "overhead": _ratio(ours["seconds"] / plain["seconds"], 1.0, int(ours["images"].sum())),
            "passes": _ratio(ours["passes"] / plain["passes"], 0.0, int(ours["images"].sum())),
        }
        if graded:
            ratios = ours["gradient_passes"] / plain["passes"]
            found[method]["gradient_passes"] = _ratio(ratios, 0.0, int(ours["images"].sum()))
    return found


def _ratio(ratios: pd.Series, less: float, images: int) -> Number:
    """Return the median ratio, less so much, with its interval over prompts where there are several values."""
    found = median_ratio(ratios.to_numpy(np.float64))
    facts = {"prompts": len(ratios), "images": images, "interval": "prompts"}
    if ratios.nunique() == 1:
        return Number(found.estimate - less, **facts)
    return Number(found.estimate - less, found.low - less, found.high - less, **facts)


def with_costs(
    columns: Sequence[Column],
    rows: Sequence[Row],
    costs: Costs,
    not_applicable: Mapping[str, Collection[str]],
    named: bool,
) -> tuple[list[Column], list[Row]]:
    """Return a table with its costs: of one set all of them at the end; of several the overhead beside its metrics.

    Args:
        columns: without costs.
        rows: likewise.
        costs: from `cost_numbers`, by the set's title; "" where there is only one to speak of.
        not_applicable: methods that a set gives nothing to work with, by its title.
        named: whether a single set's heading names it, as there are others that were not timed.
    """
    if len(costs) == 1:
        (title,) = costs
        group = f"Cost, {title}" if named and title else "Cost"
        more = [(Column("costs", metric, group, style_of(metric).heading), title) for metric in _metrics(costs)]
    else:
        more = [(Column(title, "overhead", title, style_of("overhead").heading), title) for title in costs]
    every = [*columns, *(column for column, _ in more)]
    titles = list(dict.fromkeys(column.source for column in columns))
    order = sorted(range(len(every)), key=lambda place: [*titles, "costs"].index(every[place].source))
    found = []
    for row in rows:
        cells = [*row.cells, *(_cell(costs, title, c.metric, row.method, not_applicable) for c, title in more)]
        found.append(replace(row, cells=tuple(cells[place] for place in order)))
    return [every[place] for place in order], found


def cost_tables(
    costs: Costs, world: str, not_applicable: Mapping[str, Collection[str]] = NOWHERE, baseline: str = "plain"
) -> dict[str, PaperTable]:
    """Return a table of methods by models for each cost, by its metric.

    Args:
        costs: from `cost_numbers`, by the model's printed title.
        world: "real" or "emoji".
        not_applicable: methods that cannot be used, by the title.
        baseline: the method whose batches costs are ratios to.
    """
    absent = {method for methods in not_applicable.values() for method in methods}
    methods = dict.fromkeys([baseline, *(method for numbers in costs.values() for method in numbers), *sorted(absent)])
    caption = (EMOJI if world == "emoji" else "") + costs_note(costs, baseline)
    tables = {}
    for metric in _metrics(costs):
        columns = tuple(Column(title, metric, style_of(metric).heading, title) for title in costs)
        rows = [
            Row(method, method, tuple(_cell(costs, title, metric, method, not_applicable) for title in costs))
            for method in methods
        ]
        tables[metric] = PaperTable(caption, columns, tuple(rows), world)
    return tables


def costs_note(costs: Costs, baseline: str) -> str:
    """Return what a caption says of costs, by the set's title."""
    more = "; gradients: those of them with a gradient" if "gradient_passes" in _metrics(costs) else ""
    counts = {title: _range([every["overhead"].prompts or 0 for every in one.values()]) for title, one in costs.items()}
    return (
        f"Cost: median over {told(counts)} prompts of a batch's ratio to that of {baseline}, with 95 % intervals over "
        f"prompts; overhead: time, less 1; passes: of the network{more}. LPIPS and costs are never bold."
    )


def _metrics(costs: Costs) -> list[str]:
    every = [numbers for one in costs.values() for numbers in one.values()]
    return [metric for metric in COSTS if any(metric in numbers for numbers in every)]


def _cell(costs: Costs, title: str, metric: str, method: str, not_applicable: Mapping[str, Collection[str]]) -> Cell:
    if method in not_applicable.get(title, ()):
        return "n/a"
    return costs[title].get(method, {}).get(metric, "--")


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
