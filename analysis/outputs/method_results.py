"""How methods compare: the paper's tables, and figures of rates, differences, costs and thresholds."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from math import isfinite, nan

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.results import forest, outcome_bars, pareto, seed_strips, sweep, threshold_curves
from analysis.outputs.made import Made, MadeFigure, MadeTable, NotMade, figure_of
from analysis.paper.cells import Number, PaperTable
from analysis.paper.costs import cost_numbers, cost_tables
from analysis.paper.tables import method_table, model_table, set_metric_table
from analysis.plan import PLAIN
from analysis.running.results import PartResults
from analysis.running.run import RunResults
from metrics.protocols import DetectionProtocol
from tracer.store import Store

CONSTANTS = {
    "until": "share of the steps that is edited",
    "beta": "beta, weight of the distance from the model's maps",
    "guidance": "guidance scale",
}
GAPS = "images or scores are missing, and it compares all methods on all images"
ALONG = ["method", "kind", "at", "value", "value_low", "value_high", "images"]
SCORES = """
SELECT p.method, p.prompt, p.seed, v.target, v.score FROM pictures p JOIN verdicts v USING (image_sha256)
WHERE v.protocol = $protocol AND v.against = array_to_string(list_sort(p.targets), ', ')
  AND list_contains($methods, p.method)
ORDER BY list_position($methods, p.method), p.prompt, p.seed, v.target"""

Parts = tuple[PartResults, ...]


def method_tables(results: RunResults) -> Iterator[Made]:
    """Yield the table of methods by prompt sets, as Table 1."""
    yield MadeTable("methods", "Methods", table_of(results))


def table_of(results: RunResults) -> PaperTable:
    """Return the table of methods by prompt sets, whose tests are one family."""
    return _table_of(results.parts)


@lru_cache(2)  # figures and sentences ask for its tests, too
def _table_of(parts: Parts) -> PaperTable:
    boards = {part.title: part.board for part in parts}
    return method_table(boards, costs_of(parts), _absent(parts), values=_values(parts))


def costs_of(parts: Parts) -> dict[str, pd.DataFrame]:
    """Return what methods cost, by the title of each part that was timed."""
    return {part.title: part.costs for part in parts if len(set(part.costs["method"])) > 1}


def model_tables(results: RunResults) -> Iterator[Made]:
    """Yield a table of methods by models for each metric and cost, as Table 3 and the appendix."""
    boards, absent = {part.title: part.board for part in results.parts}, _absent(results.parts)
    for metric in dict.fromkeys(metric for board in boards.values() for metric in board["metric"]):
        table = model_table(boards, metric, absent, values=_values(results.parts))
        yield MadeTable(f"models-{metric}", f"Models: {table.columns[0].group}", table)
    costs = {title: cost_numbers(frame, PLAIN) for title, frame in costs_of(results.parts).items()}
    for metric, table in cost_tables(costs, results.experiment.world, absent).items():
        yield MadeTable(f"models-{metric}", f"Models: {table.columns[0].group}", table)


def _absent(parts: Parts) -> dict[str, tuple[str, ...]]:
    return {part.title: part.not_applicable for part in parts}


def _values(parts: Parts) -> dict[str, pd.DataFrame] | None:
    return {part.title: part.values for part in parts} if all(part.whole for part in parts) else None


def set_tables(results: RunResults) -> Iterator[Made]:
    """Yield the table of FID, KID and CMMD, as Table 2."""
    for part in results.parts:
        if len(part.sets):
            yield MadeTable(f"sets-{part.planned.part.name}", f"Whole sets: {part.title}", set_metric_table(part.sets))


def forests(results: RunResults) -> Iterator[Made]:
    """Yield the paired differences to plain in detection rate and CLIP score; significant where the table says so."""
    p_holm = {
        (column.source, column.metric, row.method): cell.p_holm
        for row, column, cell in table_of(results).numbers()
        if isinstance(cell, Number)
    }
    for part in results.parts:
        for metric in ("detection_rate", "clip_cos"):
            if metric in set(part.board["metric"]) and len(part.methods) > 1:
                yield _figure(
                    results, part, f"differences-{metric}", f"Differences to {PLAIN}, {_words(metric)}",
                    "Each method against the plain images of the same prompts and seeds, with 95 % intervals; filled "
                    "where the difference is significant after Holm's correction over the table.",
                    partial(forest, _in_family(part, p_holm), metric), metric,
                )  # fmt: skip


def _in_family(part: PartResults, p_holm: Mapping[tuple[str, str, str], float]) -> pd.DataFrame:
    """Return a part's board with p-values corrected over the whole table, in which other parts may stand too."""
    keys = [(part.title, row.metric, row.method) for row in part.board.itertuples()]
    return part.board.assign(p_holm=[p_holm.get(key, nan) for key in keys])


def paretos(results: RunResults) -> Iterator[Made]:
    """Yield detection rate against cost."""
    for part in results.parts:
        timed = len(set(part.costs["method"])) > 1
        if timed and _detected(part):
            yield _figure(
                results, part, "cost", "What it costs",
                "Detection rate against the time of a batch, as a multiple of the plain one of the same prompt, made "
                "by the same worker just before. All workers were busy.",
                partial(pareto, part.board, part.costs, "seconds", "detection_rate"),
            )  # fmt: skip


def outcomes(results: RunResults) -> Iterator[Made]:
    """Yield won, lost, both found, both fail."""
    for part in results.parts:
        if not part.whole:
            yield NotMade(part.title, GAPS)
        elif len(part.methods) > 1 and _detected(part):
            yield _figure(
                results, part, "outcomes", f"Won and lost against {PLAIN}",
                "Images by what the detector finds in them and in the plain image of the same prompt and seed.",
                partial(outcome_bars, part.values, methods=part.methods),
            )  # fmt: skip


def curves(results: RunResults) -> Iterator[Made]:
    """Yield scores along the constant that is varied: where the names of all methods end in its values."""
    for part in results.parts:
        constant, table = _along(part)
        for metric in ("detection_rate", "clip_cos"):
            rows = table[table["metric"] == metric]
            if len(set(rows["kind"])) > 1:
                yield _figure(
                    results, part, f"curve-{metric}", f"Along the constant, {_words(metric)}",
                    f"At each value of one constant, which the axis names; the band is {PLAIN}. Whiskers and band are "
                    "95 % intervals of the values themselves, not of differences.",
                    partial(sweep, rows.assign(method=rows["kind"]), "at", constant, metric, None), metric,
                    {"": rows.reindex(columns=ALONG)},
                )  # fmt: skip


def _along(part: PartResults) -> tuple[str, pd.DataFrame]:
    """Return what is varied, and a part's board with each method's value of it, ``at``, and its curve, ``kind``.

    The board is empty where a name does not end in a number, or one kind of method has several constants.
    """
    methods = {name: method for name, method in part.planned.part.methods.items() if name != PLAIN}
    split = {name: name.rpartition(" ") for name in methods}
    at = {name: _number(value) for name, (_, _, value) in split.items()}
    kinds = {name: method.name for name, method in methods.items()}
    lines = {(kinds[name], stem) for name, (stem, _, _) in split.items()}
    if not methods or None in at.values() or len(lines) > len(set(kinds.values())):
        return "", part.board.iloc[:0].assign(at=nan, kind="")
    first = next(iter(split.values()))[0]
    board = part.board.assign(at=part.board["method"].map(at), kind=part.board["method"].map({PLAIN: PLAIN} | kinds))
    return CONSTANTS.get(first, first), board


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def thresholds(results: RunResults) -> Iterator[Made]:
    """Yield detection rates at every threshold."""
    for part in results.parts:
        readings = [protocol for protocol in part.protocols if isinstance(protocol, DetectionProtocol)]
        if not part.whole:
            yield NotMade(part.title, GAPS)
        elif readings:
            reading = readings[0]
            with Store.open(part.store) as store:
                scores = store.sql(SCORES, {"protocol": reading.name, "methods": list(part.methods)})
            if len(scores):
                yield _figure(
                    results, part, "thresholds", "At other thresholds",
                    "Detection rate at every threshold of the detector; the line marks the protocol's own.",
                    partial(threshold_curves, scores, reading.threshold),
                )  # fmt: skip


def seeds(results: RunResults) -> Iterator[Made]:
    """Yield each seed's mean."""
    for part in results.parts:
        plan = part.planned.part
        crossed = len(plan.seeds) > 1 and not plan.own_seeds and len(set(part.images["prompt"])) > 1
        if not part.whole:
            yield NotMade(part.title, GAPS)
        elif crossed and _detected(part):
            yield _figure(
                results, part, "seeds", "How much the seed matters",
                "Each dot is the mean over all prompts of one seed.",
                partial(seed_strips, part.values, "detection_rate", methods=part.methods),
            )  # fmt: skip


def _figure(
    results: RunResults,
    part: PartResults,
    name: str,
    title: str,
    text: str,
    draw: Callable[[str], Figure],
    metric: str = "detection_rate",
    numbers: Mapping[str, pd.DataFrame] | None = None,
) -> MadeFigure:
    prompts, count = part.images["prompt"].nunique(), len(part.planned.part.seeds)
    caption = f"{part.title}, {prompts} prompts x {count} seeds, {part.protocol(metric)}."
    if not part.whole:
        images = part.board["images"]
        caption += f" Of each method the images that it has in common with {PLAIN}: {images.min()} to {images.max()}."
    return figure_of(results, part, name, title, text, caption, draw, numbers)


def _detected(part: PartResults) -> bool:
    return "detection_rate" in set(part.values["metric"])


def _words(metric: str) -> str:
    return {"detection_rate": "detection rate", "clip_cos": "CLIP score"}.get(metric, metric)
