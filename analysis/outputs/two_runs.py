"""Two runs side by side: the same methods, metric by metric, paired where prompts and seeds are the same."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis.paper import files as table_files
from analysis.paper.tables import PaperTable, comparison_table
from analysis.plan import PLAIN
from analysis.scoreboard import lacking, pairwise, unbalanced
from tracer.store import Store

Values = dict[str, pd.DataFrame]  # by the runs' titles


def compare_runs(
    first: Path, second: Path, console: Console | None = None, allow_missing: bool = False
) -> list[PaperTable]:
    """Return a table per metric for every pair of parts of one name, and print them, and what only one run has.

    Args:
        first: folder of a run.
        second: of another.
        console: where the tables go.
        allow_missing: compare method by method on what there is, with the numbers shown.

    Raises:
        Unbalanced: of a method that both runs have one lacks images that the other has, or a method of a run those that
            others of it have, and that is not allowed; with the list of them.
        ValueError: a folder holds no run, or the two have no part, or in a part no method, in common.
    """
    titles = _titles(first, second)
    names = [[str(part["name"]) for part in _spec(folder)["parts"]] for folder in titles.values()]
    common = [name for name in names[0] if name in names[1]]
    if not common:
        raise ValueError(f"the runs must have parts of one name, got {', '.join(names[0])} and {', '.join(names[1])}")
    said, tables = _only_one(titles, dict(zip(titles, names, strict=True)), "part"), []
    for name in common:
        values = {title: _values(folder / f"{name}.duckdb") for title, folder in titles.items()}
        methods = {title: list(dict.fromkeys(frame["method"])) for title, frame in values.items()}
        said += [f"{name}: {line}" for line in _only_one(titles, methods, "method")]
        _check_comparable(name, values, methods, allow_missing)
        boards = {title: pairwise(frame, methods[title], PLAIN) for title, frame in values.items()}
        tables += [comparison_table(boards, metric, values, shared=allow_missing) for metric in _metrics(boards)]
    if console:
        for text in (*map(table_files.markdown_of, tables), *said):
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    return tables


def _only_one(titles: Iterable[str], names: Mapping[str, Sequence[str]], what: str) -> list[str]:
    """Return which names only one of two runs has, a line for each run."""
    first, second = titles
    alone = {title: [n for n in names[title] if n not in names[o]] for title, o in ((first, second), (second, first))}
    return [f"only {title} has the {what}{'s' * (len(n) > 1)} {', '.join(n)}" for title, n in alone.items() if n]


def _check_comparable(name: str, values: Values, methods: Mapping[str, Sequence[str]], allow_missing: bool) -> None:
    """Refuse runs without a method in common, and, unless it is allowed, what one lacks of the other or of itself."""
    first, second = values
    common = [method for method in methods[first] if method in methods[second]]
    if not common:
        raise ValueError(f"the runs must have a method in common, got none in {name}")
    absent = [f"{title}: {line}" for title in values for line in lacking(values[title], methods[title], PLAIN)]
    absent += [line for method in common for line in _lacking_of(values, method)]
    if absent and not allow_missing:
        raise unbalanced(list(dict.fromkeys(absent)))


def _lacking_of(values: Values, method: str) -> list[str]:
    """Return which of a method's values only one of two runs has, in the metrics of both, whatever the protocols."""
    mine = {title: frame[frame["method"] == method] for title, frame in values.items()}
    metrics = set.intersection(*(set(frame["metric"]) for frame in mine.values()))
    named = {f"{title}: {method}": frame[frame["metric"].isin(metrics)] for title, frame in mine.items()}
    both = pd.concat([frame.assign(method=name, protocol="") for name, frame in named.items()])
    return lacking(both, list(named), "")


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
