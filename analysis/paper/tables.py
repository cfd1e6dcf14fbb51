"""From scoreboards to the tables of a paper: methods by prompt sets, by models, by set metrics, and two runs compared.

    table = method_table({"COCO": board}, costs, {"A&E": ["dense"]}, values={"COCO": values})

Conventions:
    A board is what `analysis.scoreboard.scoreboard` returns. Rows are in the order of `names`, then of the boards; the
    baseline comes first. A table has one protocol per metric and set, and one world.
    Daggers tell of differences to the baseline, corrected by Holm over all that the table shows. Bold needs `values`:
    the highest mean of a column and all that a paired test against it does not find worse, by Holm over the column.
    LPIPS and costs are never bold, nor are metrics of sets, for which there is no paired test.
    What costs are: ``analysis/paper/costs.py``.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import isclose, nan
from types import MappingProxyType

import pandas as pd

from analysis.paper.captions import EMOJI, by_column, caption, protocols, told
from analysis.paper.cells import SIGNIFICANT, STYLES, Cell, Column, Number, PaperTable, Row, style_of
from analysis.paper.costs import cost_numbers, costs_note, with_costs
from analysis.scoreboard import cells, scoreboard
from analysis.significance import holm

PLAIN = "plain"
METRICS = ("clip_cos", "detection_rate", "lpips", "lpips-tiny")
NOWHERE: Mapping[str, Collection[str]] = MappingProxyType({})
FIRST, SECOND = "first", "second"

Boards = Mapping[str, pd.DataFrame]


def method_table(
    boards: Boards,
    costs: pd.DataFrame | Boards | None = None,
    not_applicable: Mapping[str, Collection[str]] = NOWHERE,
    *,
    names: Mapping[str, str] | None = None,
    values: Boards | None = None,
    metrics: Sequence[str] = METRICS,
    baseline: str = PLAIN,
) -> PaperTable:
    """Return methods by prompt sets: each set's metrics side by side, and what the methods cost.

    Args:
        boards: by the set's printed title.
        costs: a row per method and prompt; columns method, prompt_id, images, seconds, passes, gradient_passes; or such
            frames by title: of several sets each has its overhead beside its metrics.
        not_applicable: methods that a set gives nothing to work with, by its title.
        names: methods' printed names, in the order of the rows.
        values: what the boards were made of, by title, for what is printed bold.
        metrics: which, in order; those that a board lacks are left out.
        baseline: the method that others are compared with.

    Raises:
        ValueError: there is no board; worlds or protocols of a metric are mixed; values are not the board's; a method
            that does not apply has numbers; or costs do not pair prompt by prompt.
    """
    columns = [
        Column(title, metric, title, style_of(metric).heading)
        for title, board in boards.items()
        for metric in metrics
        if metric in set(board["metric"])
    ]
    timed = {"": costs} if isinstance(costs, pd.DataFrame) else dict(costs or {})
    rows, world = _rows(boards, columns, not_applicable, names or {}, values, baseline, list(timed.values()))
    notes = []
    if timed:
        dear = {title: cost_numbers(frame, baseline) for title, frame in timed.items()}
        columns, rows = with_costs(columns, rows, dear, not_applicable, named=len(boards) > 1)
        notes = [costs_note(dear, _label(baseline, names))]
    return PaperTable(caption(columns, rows, world, _label(baseline, names), notes), tuple(columns), tuple(rows), world)


def model_table(
    boards: Boards,
    metric: str,
    not_applicable: Mapping[str, Collection[str]] = NOWHERE,
    *,
    names: Mapping[str, str] | None = None,
    values: Boards | None = None,
    baseline: str = PLAIN,
) -> PaperTable:
    """Return methods by models in one metric; arguments as in `method_table`, by the model's printed title.

    Raises:
        ValueError: as in `method_table`, or no board has the metric.
    """
    columns = [Column(title, metric, style_of(metric).heading, title) for title in boards]
    rows, world = _rows(boards, columns, not_applicable, names or {}, values, baseline)
    if not any(by_column(columns, rows).values()):
        raise ValueError(f"metric must be one of the boards', got {metric!r}")
    return PaperTable(caption(columns, rows, world, _label(baseline, names), []), tuple(columns), tuple(rows), world)


def set_metric_table(sets: pd.DataFrame, *, names: Mapping[str, str] | None = None) -> PaperTable:
    """Return methods by metrics of whole sets: FID, KID, CMMD; `sets` as `analysis.score_folders.Scores` has it.

    Raises:
        ValueError: there is no row, worlds are mixed, or a metric has several protocols.
    """
    if sets.empty:
        raise ValueError("sets must have at least one row, got none")
    found = sets["metric"].unique().tolist()
    metrics = sorted(found, key=lambda metric: list(STYLES).index(metric) if metric in STYLES else len(STYLES))
    columns = [Column("sets", metric, "", style_of(metric).heading) for metric in metrics]
    boards = {"sets": sets.rename(columns={"low": "value_low", "high": "value_high", "n": "images"})}
    rows, world = _rows(boards, columns, NOWHERE, names or {}, None, PLAIN)
    numbers = {column: every[0] for column, every in by_column(columns, rows).items() if every}
    sizes = {
        row["metric"]: f"{row['n']} images a method, {row['n_reference']} references" for _, row in sets.iterrows()
    }
    beware = list(dict.fromkeys(text for texts in sets["warnings"] for text in texts))
    parts = [
        f"{told({style_of(metric).title: sizes[metric] for metric in metrics})}.",
        "Brackets: 95 % intervals of one set each, from halves of it. Nothing is bold: sets are not tested in pairs.",
        *([f"Beware: {'; '.join(beware)}."] if beware else []),
        protocols(numbers),
    ]
    return PaperTable((EMOJI if world == "emoji" else "") + " ".join(parts), tuple(columns), tuple(rows), world)


def comparison_table(
    boards: Boards,
    metric: str,
    values: Boards,
    not_applicable: Mapping[str, Collection[str]] = NOWHERE,
    *,
    names: Mapping[str, str] | None = None,
    baseline: str = PLAIN,
    shared: bool = False,
) -> PaperTable:
    """Return two runs side by side, and how much higher the second is where both have the same prompts and seeds.

    Args:
        boards: of two runs, by their printed titles.
        metric: which.
        values: what the boards were made of, by title.
        not_applicable: as in `method_table`.
        names: as in `method_table`.
        baseline: the method that stands first.
        shared: whether runs of which images are missing are compared on those that both have.

    Raises:
        ValueError: there are not two runs, or as in `model_table`.
    """
    if len(boards) != 2:
        raise ValueError(f"boards must be of two runs, got {', '.join(boards) or 'none'}")
    (first, second), heading = boards, style_of(metric).heading
    columns = [Column(title, metric, heading, title) for title in boards]
    rows, world = _rows(boards, columns, not_applicable, names or {}, None, baseline)
    if not any(by_column(columns, rows).values()):
        raise ValueError(f"metric must be one of the boards', got {metric!r}")
    rows = [_compared(row, _between(row, metric, values[first], values[second], shared)) for row in rows]
    columns.append(Column(f"{second} - {first}", metric, heading, "Difference", difference=True))
    rows = _counted(_corrected(rows))
    notes = [f"Difference: {second} minus {first}, paired; -- where prompts, seeds or protocols are not the same."]
    if shared:
        notes = [f"Difference: {second} minus {first}, paired, of the images that both runs have."]
    said = caption(columns, rows, world, _label(baseline, names), notes, against=first)
    return PaperTable(said, tuple(columns), tuple(rows), world)


def _rows(
    boards: Boards,
    columns: Sequence[Column],
    not_applicable: Mapping[str, Collection[str]],
    names: Mapping[str, str],
    values: Boards | None,
    baseline: str,
    costs: Sequence[pd.DataFrame] = (),
) -> tuple[list[Row], str]:
    """Return a row per method with its tests, and the world."""
    if not boards:
        raise ValueError("boards must be at least one, got none")
    if values is not None and (lacking := [title for title in boards if title not in values]):
        raise ValueError(f"values must be given for every board, {', '.join(lacking)} has none")
    world = _world(boards)
    frames = [frame["method"] for frame in (*boards.values(), *costs)]
    known = {method for frame in frames for method in frame} | {m for n in not_applicable.values() for m in n}
    every = [*names, *(method for frame in frames for method in frame), *sorted(known)]
    methods = sorted(dict.fromkeys(m for m in every if m in known), key=lambda method: method != baseline)
    by_place = [_column(boards[c.source], c, not_applicable.get(c.source, ())) for c in columns]
    if values is not None:
        by_place = [_with_best(c, found, values[c.source]) for c, found in zip(columns, by_place, strict=True)]
    rows = [Row(m, names.get(m, m), tuple(found.get(m, "--") for found in by_place)) for m in methods]
    return _counted(_corrected(rows)), world


def _counted(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with numbers that tell of how many images they are, in columns where that differs."""
    sizes = [
        {(cell.prompts, cell.images) for cell in column if isinstance(cell, Number)}
        for column in zip(*(row.cells for row in rows), strict=True)
    ]
    return [
        replace(
            row,
            cells=tuple(
                replace(cell, counted=len(size) > 1) if isinstance(cell, Number) else cell
                for cell, size in zip(row.cells, sizes, strict=True)
            ),
        )
        for row in rows
    ]


def _column(board: pd.DataFrame, column: Column, never: Collection[str]) -> dict[str, Cell]:
    part = board[board["metric"] == column.metric]
    if len(used := part["protocol"].unique()) > 1:
        raise ValueError(f"{column.metric} must have one protocol ({column.source}), got {', '.join(used)}; choose one")
    if wrong := sorted({*part["method"]} & {*never}):
        raise ValueError(f"methods that do not apply must have no numbers ({column.source}), got {', '.join(wrong)}")
    given = [field for field in Number.__dataclass_fields__ if field in part and field != "p_holm"]
    found: dict[str, Cell] = {method: "n/a" for method in never}
    for _, line in part.iterrows():
        facts = {field: line[field] for field in given}
        counted = {field: int(facts[field]) for field in ("prompts", "seeds", "images") if field in facts}
        ends = {end: line[f"value_{end}"] for end in ("low", "high")}
        measured = {key: nan if value is None else value for key, value in (facts | ends).items()}
        found[line["method"]] = Number(**measured | counted)
    return found


def _with_best(column: Column, found: Mapping[str, Cell], values: pd.DataFrame) -> dict[str, Cell]:
    """Return the column with what is best, and what is not found to be worse."""
    numbers = {method: cell for method, cell in found.items() if isinstance(cell, Number)}
    if not column.style.best or len(numbers) < 2:
        return dict(found)
    protocol = next(iter(numbers.values())).protocol
    mine = values[(values["metric"] == column.metric) & (values["protocol"] == protocol)]
    mine = mine[mine["method"].isin(list(numbers))]
    (part,) = cells(mine, list(numbers), "", allow_missing=True) if len(mine) else (None,)
    best = max(numbers, key=lambda method: numbers[method].value)
    lines = None if part is None else scoreboard([part], best).set_index("method")
    if lines is None or not all(isclose(lines.loc[m, "value"], n.value, abs_tol=1e-9) for m, n in numbers.items()):
        raise ValueError(f"values must be what the board was made of ({column.source}, {column.metric}), got others")
    p_best = lines["p_holm"].fillna(1.0)
    tested = {m: replace(n, p_best=float(p_best[m]), bold=bool(p_best[m] >= SIGNIFICANT)) for m, n in numbers.items()}
    return {**found, **tested}


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with p-values corrected over the whole table."""
    every: dict[tuple[str, int], Cell] = {
        (row.method, place): cell for row in rows for place, cell in enumerate(row.cells)
    }
    tested = {f"{key}": cell.p for key, cell in every.items() if isinstance(cell, Number) and cell.p >= 0}
    corrected = holm(tested) if tested else {}

    def cell_of(key: tuple[str, int]) -> Cell:
        cell: Cell = every[key]
        if isinstance(cell, Number) and f"{key}" in tested:
            return replace(cell, p_holm=corrected[f"{key}"])
        return cell

    return [replace(row, cells=tuple(cell_of((row.method, place)) for place in range(len(row.cells)))) for row in rows]


def _compared(row: Row, difference: Cell) -> Row:
    """Return the row with the difference, which alone is tested here."""
    untested = [replace(cell, p=nan, p_holm=nan) if isinstance(cell, Number) else cell for cell in row.cells]
    return replace(row, cells=(*untested, difference))


def _between(row: Row, metric: str, first: pd.DataFrame, second: pd.DataFrame, shared: bool) -> Cell:
    if "n/a" in row.cells:
        return "n/a"
    mine = [run[(run["metric"] == metric) & (run["method"] == row.method)] for run in (first, second)]
    keys = [set(part[["protocol", "prompt_id", "prompt", "seed"]].itertuples(index=False)) for part in mine]
    if not keys[0] & keys[1] or (keys[0] != keys[1] and not shared):
        return "--"
    frame = pd.concat([mine[0].assign(method=FIRST), mine[1].assign(method=SECOND)])
    (part,) = cells(frame, [FIRST, SECOND], "", shared)
    line = scoreboard([part], FIRST).set_index("method").loc[SECOND]
    spread = {name: float(line[name]) for name in ("difference", "difference_low", "difference_high", "p")}
    size = {name: int(line[name]) for name in ("prompts", "seeds", "images")}
    ends = line["difference"], line["difference_low"], line["difference_high"]
    return Number(*map(float, ends), line["protocol"], **size, **spread, interval=line["interval"])


def _world(boards: Boards) -> str:
    used = {str(name) for board in boards.values() for name in board["protocol"].unique()}
    worlds = {"emoji" if name.startswith("emoji") else "real" for name in used}
    if len(worlds) != 1:
        raise ValueError(f"boards must be of one world, got {', '.join(sorted(used)) or 'no protocol'}")
    return worlds.pop()


def _label(method: str, names: Mapping[str, str] | None) -> str:
    return (names or {}).get(method, method)
