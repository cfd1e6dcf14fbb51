"""Two runs side by side: the same methods, metric by metric, paired where prompts and seeds are the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis.paper import files as table_files
from analysis.paper.tables import PaperTable, comparison_table
from analysis.plan import PLAIN
from analysis.scoreboard import Unbalanced, lacking, pairwise
from tracer.store import Store

SHOWN = 10  # missing cells that an error names


def compare_runs(
    first: Path, second: Path, console: Console | None = None, allow_missing: bool = False
) -> list[PaperTable]:
    """Return a table per metric for every pair of parts of one name, and print them.

    Args:
        first: folder of a run.
        second: of another.
        console: where the tables go.
        allow_missing: compare method by method on what there is, with the numbers shown.

    Raises:
        Unbalanced: methods of a run lack images that others of it have, and that is not allowed; with the list of them.
        ValueError: a folder holds no run, or the two have no part in common.
    """
    titles = _titles(first, second)
    names = [[str(part["name"]) for part in _spec(folder)["parts"]] for folder in titles.values()]
    common = [name for name in names[0] if name in names[1]]
    if not common:
        raise ValueError(f"the runs must have parts of one name, got {', '.join(names[0])} and {', '.join(names[1])}")
    tables = []
    for name in common:
        values = {title: _values(folder / f"{name}.duckdb") for title, folder in titles.items()}
        if not allow_missing:
            _check_whole(values)
        boards = {
            title: pairwise(frame, list(dict.fromkeys(frame["method"])), PLAIN) for title, frame in values.items()
        }
        for metric in _metrics(boards):
            table = comparison_table(boards, metric, values, shared=allow_missing)
            tables.append(table)
            if console:
                console.print(table_files.markdown_of(table), markup=False, highlight=False, soft_wrap=True)
    return tables


def _check_whole(values: dict[str, pd.DataFrame]) -> None:
    absent = [
        f"{title}: {line}"
        for title, frame in values.items()
        for line in lacking(frame, list(dict.fromkeys(frame["method"])), PLAIN)
    ]
    if absent:
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        listed = "; ".join(absent[:SHOWN])
        raise Unbalanced(f"cells are missing: {listed}{more}; --allow-missing compares on what there is")


def _spec(run: Path) -> dict[str, Any]:
    file = run / "spec.json"
    if not file.is_file():
        raise ValueError(f"{run} must be the folder of a run, it has no spec.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _titles(first: Path, second: Path) -> dict[str, Path]:
    if first.resolve() == second.resolve():
        raise ValueError(f"the runs must be two, got {first} twice")
    if first.resolve().name != second.resolve().name:
        return {first.resolve().name: first, second.resolve().name: second}
    return {str(first): first, str(second): second}


def _values(file: Path) -> pd.DataFrame:
    """Return a part's values, its methods in the order in which they were scored, plain first."""
    with Store.open(file) as store:
        values = store.sql(
            "FROM picture_values WHERE compared_with IS NULL OR compared_with = $plain "
            "ORDER BY protocol, metric, method <> $plain, method, prompt_id, prompt, seed",
            {"plain": PLAIN},
        )
    several = values.groupby("metric")["protocol"].nunique()
    if len(mixed := several[several > 1]):
        raise ValueError(f"{file} must have one protocol of each metric, got several of {', '.join(mixed.index)}")
    return values


def _metrics(boards: dict[str, pd.DataFrame]) -> Iterator[str]:
    first, second = boards.values()
    return (metric for metric in dict.fromkeys(first["metric"]) if metric in set(second["metric"]))
