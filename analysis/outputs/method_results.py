"""How methods compare: the paper's tables, and figures of rates, differences, costs and thresholds."""

from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.results import forest, outcome_bars, pareto, seed_strips, threshold_curves
from analysis.outputs.made import Made, MadeFigure, MadeTable
from analysis.paper.tables import method_table, model_table, set_metric_table
from analysis.plan import PLAIN
from analysis.running.results import PartResults
from analysis.running.run import RunResults
from metrics.protocols import DetectionProtocol
from tracer.store import Store

WORLDS = {"emoji": "Emoji world, on its own small model and judges. ", "real": ""}
SCORES = """
SELECT p.method, p.prompt, p.seed, v.target, v.score FROM pictures p JOIN verdicts v USING (image_sha256)
WHERE v.protocol = $protocol AND v.against = array_to_string(list_sort(p.targets), ', ')
  AND list_contains($methods, p.method)
ORDER BY list_position($methods, p.method), p.prompt, p.seed, v.target"""


def method_tables(results: RunResults) -> Iterator[Made]:
    """Yield the table of methods by prompt sets, as Table 1."""
    boards = {part.title: part.board for part in results.parts}
    table = method_table(
        boards,
        costs_of(results),
        {part.title: part.not_applicable for part in results.parts},
        values={part.title: part.values for part in results.parts} if all(p.whole for p in results.parts) else None,
    )
    yield MadeTable("methods", "Methods", table)


def costs_of(results: RunResults) -> pd.DataFrame | None:
    """Return what methods cost on the first part's prompts, if it was timed."""
    costs = results.parts[0].costs
    paired = costs.loc[costs["prompt_id"].isin(costs.loc[costs["method"] == PLAIN, "prompt_id"])]
    return paired if len(set(paired["method"])) > 1 else None


def model_tables(results: RunResults) -> Iterator[Made]:
    """Yield a table of methods by models for each metric, as Table 3 and the appendix."""
    boards = {part.title: part.board for part in results.parts}
    absent = {part.title: part.not_applicable for part in results.parts}
    values = {part.title: part.values for part in results.parts} if all(p.whole for p in results.parts) else None
    for metric in dict.fromkeys(metric for board in boards.values() for metric in board["metric"]):
        table = model_table(boards, metric, absent, values=values)
        yield MadeTable(f"models-{metric}", f"Models: {table.columns[0].group}", table)


def set_tables(results: RunResults) -> Iterator[Made]:
    """Yield the table of FID, KID and CMMD, as Table 2."""
    for part in results.parts:
        if len(part.sets):
            yield MadeTable(f"sets-{part.planned.part.name}", f"Whole sets: {part.title}", set_metric_table(part.sets))


def forests(results: RunResults) -> Iterator[Made]:
    """Yield the paired differences to plain in detection rate and CLIP score."""
    for part in results.parts:
        for metric in ("detection_rate", "clip_cos"):
            if metric in set(part.board["metric"]) and len(part.methods) > 1:
                yield _figure(
                    results, part, f"differences-{metric}", f"Differences to {PLAIN}, {_words(metric)}",
                    "Each method against the plain images of the same prompts and seeds, with 95 % intervals; filled "
                    "where the difference is significant after Holm's correction over the table.",
                    partial(forest, part.board, metric),
                )  # fmt: skip


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
        if part.whole and len(part.methods) > 1 and _detected(part):
            yield _figure(
                results, part, "outcomes", f"Won and lost against {PLAIN}",
                "Images by what the detector finds in them and in the plain image of the same prompt and seed.",
                partial(outcome_bars, part.values, methods=part.methods),
            )  # fmt: skip


def thresholds(results: RunResults) -> Iterator[Made]:
    """Yield detection rates at every threshold."""
    for part in results.parts:
        readings = [protocol for protocol in part.protocols if isinstance(protocol, DetectionProtocol)]
        if part.whole and readings:
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
        crossed = part.whole and len(plan.seeds) > 1 and not plan.own_seeds and len(set(part.images["prompt"])) > 1
        if crossed and _detected(part):
            yield _figure(
                results, part, "seeds", "How much the seed matters",
                "Each dot is the mean over all prompts of one seed.",
                partial(seed_strips, part.values, "detection_rate", methods=part.methods),
            )  # fmt: skip


def _figure(
    results: RunResults, part: PartResults, name: str, title: str, text: str, draw: Callable[[str], Figure]
) -> MadeFigure:
    prompts, count = part.images["prompt"].nunique(), len(part.planned.part.seeds)
    caption = f"{WORLDS[results.experiment.world]}{part.title}, {prompts} prompts x {count} seeds."
    several = len(results.parts) > 1
    return MadeFigure(
        f"{name}-{part.planned.part.name}" if several else name,
        f"{title}: {part.title}" if several else title,
        text,
        f"{title}. {text} {caption}",
        lambda: draw(caption),
    )


def _detected(part: PartResults) -> bool:
    return "detection_rate" in set(part.values["metric"])


def _words(metric: str) -> str:
    return {"detection_rate": "detection rate", "clip_cos": "CLIP score"}.get(metric, metric)
