"""The answer of a run in sentences: which methods show all targets more or less often than plain does."""

from collections.abc import Iterator

from analysis.figures.style import signed
from analysis.outputs.method_results import table_of
from analysis.paper.cells import SIGNIFICANT, Number, style_of
from analysis.plan import PLAIN
from analysis.running.run import RunResults

METRIC = "detection_rate"


def findings(results: RunResults) -> tuple[str, ...]:
    """Return a sentence for each part whose methods are compared in detection rate.

    It names the methods that differ from plain by the test of the run's table of methods, with Holm's correction over
    all of that table; or, where none does, the one that differs most.

    Raises:
        ValueError: there can be no such table.
    """
    if not any(METRIC in set(part.board["metric"]) and len(part.methods) > 1 for part in results.parts):
        return ()
    cells = [
        (row.method, column, cell) for row, column, cell in table_of(results).numbers() if isinstance(cell, Number)
    ]
    count = sum(cell.p_holm >= 0 for _, _, cell in cells)
    tested = f"95 % intervals; paired test, Holm over the {count} differences of the table, p < {SIGNIFICANT:g}"
    found = []
    for part in results.parts:
        mine = {m: cell for m, column, cell in cells if (column.source, column.metric) == (part.title, METRIC)}
        before = f"{part.title}: in" if len(results.parts) > 1 else "In"
        found += [f"{before} detection rate {said} ({tested})." for said in _sentence(mine)]
    return tuple(found)


def _sentence(rates: dict[str, Number]) -> Iterator[str]:
    """Yield what is to be said of some methods' rates, if several are compared."""
    others = {method: rate for method, rate in rates.items() if rate.p_holm >= 0}
    if not others:
        return
    told = {method: rate for method, rate in others.items() if rate.mark}
    plain = f"{PLAIN} ({style_of(METRIC).text(rates[PLAIN].value)})"
    if told:
        listed = "; ".join(f"{method} {_points(rate)}" for method, rate in told.items())
        differ = "differs" if len(told) == 1 else "differ"
        yield f"{len(told)} of {len(others)} methods {differ} significantly from {plain}: {listed}"
        return
    most = max(others, key=lambda method: abs(others[method].difference))
    if others[most].difference == 0:
        yield f"no method differs from {plain}"
    else:
        yield f"no method differs significantly from {plain}; most {most}, by {_points(others[most])}"


def _points(rate: Number) -> str:
    ends = rate.difference, rate.difference_low, rate.difference_high
    middle, low, high = (signed(100 * end, 1) for end in ends)
    return f"{middle} points [{low}, {high}]"
