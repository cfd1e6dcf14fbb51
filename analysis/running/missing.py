"""Cells of the plan that have no images: what they are called, and a comparison refused because of them."""

from collections.abc import Collection, Sequence
from pathlib import Path

from analysis.running.ledger import FAILURES, write_text
from analysis.running.units import Planned, fitting
from analysis.scoreboard import SHOWN

WHOLE_LIST = "missing.txt"  # where all of them are, if they are more


class Incomplete(ValueError):
    """Methods that were to be compared lack images of some prompts."""


class BatchesFailed(Incomplete):
    """Images are missing because batches failed, in this call or an earlier one."""


def missing_cells(one: Planned, there: Collection[str]) -> list[str]:
    """Return what is missing of a part, a line per method and prompt, methods left out that fit none of its prompts.

    Args:
        one: a part.
        there: keys of the units that are done.
    """
    absent, fit = [], set(fitting(one))
    for cell in one.cells:
        if cell.method in fit and not (cell.units and all(unit.key in there for unit in cell.units)):
            reason = f" ({cell.standing.reason})" if cell.standing.verdict == "n/a" else ""
            absent.append(f"{one.part.name}: {cell.method} on {cell.prompt.text!r}{reason}")
    return absent


def listed(absent: Sequence[str], folder: Path) -> str:
    """Return the first of what is missing in a sentence; if there is more, all of it stands in a file of the folder."""
    more = ""
    if len(absent) > SHOWN:
        write_text(folder / WHOLE_LIST, "".join(f"{line}\n" for line in absent))
        more = f" and {len(absent) - SHOWN} more, all in {folder / WHOLE_LIST}"
    return f"cells are missing: {'; '.join(absent[:SHOWN])}{more}"


def incomplete(absent: Sequence[str], folder: Path, failed: bool) -> Incomplete:
    """Return the error that refuses a comparison, or says that some of what was to be compared failed."""
    again = f"; {folder / FAILURES} says why, --retry tries again" if failed else ""
    kind = BatchesFailed if failed else Incomplete
    return kind(f"{listed(absent, folder)}{again}; --allow-missing compares each method on what it has")
