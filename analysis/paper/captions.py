"""What stands below a paper's table: sets, sizes, protocols, what intervals are over, what bold and daggers mean."""

from collections.abc import Iterable, Mapping, Sequence

from analysis.paper.cells import COSTS, HIGHER, LOWER, SIGNIFICANT, TIMES, Column, Number, Row, style_of

EMOJI = "Emoji world: 64-pixel drawings by a small model, not comparable with results on photographs. "
LEVEL = f"p < {SIGNIFICANT:g}"


def caption(
    columns: Sequence[Column],
    rows: Sequence[Row],
    world: str,
    baseline: str,
    notes: Sequence[str],
    *,
    against: str = "",
) -> str:
    """Return the caption of a table of means.

    Args:
        columns: of the table.
        rows: of the table, tests included.
        world: "real" or "emoji".
        baseline: the printed name of the method whose images others share prompts and seeds with, and are held
            against by LPIPS.
        notes: sentences that belong to this kind of table.
        against: the printed name of what daggers compare with; "" for the baseline.
    """
    numbers = by_column(columns, rows)
    first = {column: found[0] for column, found in numbers.items() if found and column.metric not in COSTS}
    measured = {column: number for column, number in first.items() if not column.difference}
    metrics = list(dict.fromkeys(column.metric for column in numbers))
    sizes = {column: _sizes(numbers[column], baseline) for column in measured}
    over = {column: " or ".join(dict.fromkeys(number.interval for number in numbers[column])) for column in first}
    parts = [
        f"{_by_source(sizes, metrics)}." if measured else "",
        f"Brackets: 95 % intervals over {_by_source(over, metrics)}." if first else "",
        _bold(numbers),
        _daggers(numbers, against or baseline),
        f"LPIPS is the distance to the image of {baseline}: less means fewer edits, not better."
        if any(metric.startswith("lpips") for metric in metrics)
        else "",
        *notes,
        protocols(measured),
    ]
    return (EMOJI if world == "emoji" else "") + " ".join(part for part in parts if part)


def by_column(columns: Sequence[Column], rows: Sequence[Row]) -> dict[Column, list[Number]]:
    """Return each column's numbers."""
    cells = {column: [row.cells[place] for row in rows] for place, column in enumerate(columns)}
    return {column: [cell for cell in found if isinstance(cell, Number)] for column, found in cells.items()}


def protocols(measured: Mapping[Column, Number]) -> str:
    """Return which protocol each metric's numbers are of; where sources differ, whose."""
    parts = []
    for metric in dict.fromkeys(column.metric for column in measured):
        mine = {column.source: number.protocol for column, number in measured.items() if column.metric == metric}
        parts.append(f"{style_of(metric).title} {told(mine)}")
    return f"Protocols: {'; '.join(parts)}." if parts else ""


def told(facts: Mapping[str, str]) -> str:
    """Return what holds of all: "x", or of whom: "x (COCO, A&E), y (FID set)"."""
    if len(distinct := list(dict.fromkeys(facts.values()))) == 1:
        return distinct[0]
    return ", ".join(f"{fact} ({', '.join(key for key in facts if facts[key] == fact)})" for fact in distinct)


def _by_source(facts: Mapping[Column, str], metrics: Iterable[str]) -> str:
    """Return a fact of each source: once if all have it in common, else with the metrics that it holds of."""
    told_of: dict[str, str] = {}
    for source in dict.fromkeys(column.source for column in facts):
        mine = {column.metric: fact for column, fact in facts.items() if column.source == source}
        titles = {style_of(metric).title: mine[metric] for metric in metrics if metric in mine}
        told_of[source] = told(titles)
    of = {fact: [source for source in told_of if told_of[source] == fact] for fact in told_of.values()}
    return "; ".join(f"{', '.join(sources)}: {fact}" if len(of) > 1 else fact for fact, sources in of.items())


def _sizes(numbers: Sequence[Number], baseline: str) -> str:
    """Return of how many prompts and images a column's numbers are."""
    if not any(number.counted for number in numbers):
        return _size(numbers[0])
    least, most = (end(number.images or 0 for number in numbers) for end in (min, max))
    return f"{least} to {most} images a method: n, those that it has in common with {baseline}"


def _size(number: Number) -> str:
    if number.prompts is None:
        return f"{number.images} images a method"
    seeds = number.seeds or 1
    if number.prompts * seeds == number.images:
        return f"{number.prompts} prompts {TIMES} {seeds} seed{'s' * (seeds > 1)}, {number.images} images a method"
    return f"{number.prompts} prompts, {number.images} images a method"


def _bold(numbers: Mapping[Column, Sequence[Number]]) -> str:
    if not any(number.bold for found in numbers.values() for number in found):
        return ""
    return (
        "Bold: the column's highest mean, and every method that is not significantly worse than it "
        f"(paired test, Holm over the column, {LEVEL}); this shows no equality."
    )


def _daggers(numbers: Mapping[Column, Sequence[Number]], against: str) -> str:
    tested = [number for found in numbers.values() for number in found if number.p_holm >= 0]
    if not tested:
        return ""
    family = f"paired test, Holm over the {len(tested)} differences of the table, {LEVEL}"
    return f"{HIGHER} higher, {LOWER} lower than {against} ({family})."
