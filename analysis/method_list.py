"""What methods there are, as `attnreg methods` shows it: mechanism, needs, constants, source, models, licence."""

from collections.abc import Mapping
from itertools import groupby

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from regulate.catalogue import CATALOGUE, Entry

STEPS = 50  # for which passes are told
PASSES = f"passes, {STEPS} steps"


def known(name: str) -> Entry:
    """Return the method of this name.

    Raises:
        ValueError: there is none; those that there are are named.
    """
    if name not in CATALOGUE:
        raise ValueError(f"no method is called {name!r}; methods are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def facts(name: str) -> dict[str, str]:
    """Return what is known of a method, by heading; `constants` is of what its dataclass holds.

    Raises:
        ValueError: no method is called so.
    """
    entry = known(name)
    least, most = entry.method.gradient_passes(STEPS)
    more = f" + {least}" * (least == most > 0) + f" + {least} to {most}" * (least != most)
    return {
        "method": name,
        "mechanism": entry.mechanism,
        "needs": entry.needs,
        "models": entry.models,
        "source": entry.source,
        "licence of the original": entry.licence,
        PASSES: f"{STEPS}{more}{' with gradients' if more else ''}",
        "constants": _written(entry.method.parameters()),
    }


def method_table() -> pd.DataFrame:
    """Return a row per method; passes are those of one image."""
    return pd.DataFrame([facts(name) for name in CATALOGUE])


def as_table() -> Table:
    """Return all methods for the terminal, presets of one method in one row; the rest is on their sheets."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("method", "mechanism", "needs", "passes"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("method", "passes"))
    every = {name: facts(name) for name in CATALOGUE}
    for (mechanism, needs, _), group in groupby(
        every.values(), lambda one: (one["mechanism"], one["needs"], one["source"])
    ):
        rows = list(group)
        names = "\n".join(row["method"] for row in rows)
        passes = "\n".join(row[PASSES].replace(" with gradients", "") for row in rows)
        table.add_row(names, mechanism, needs, passes)
    table.caption = (
        f"passes: of the network for {STEPS} steps, + with gradients, of one image; "
        "attnreg methods NAME tells constants, source, licence, models"
    )
    table.caption_justify = "left"
    return table


def as_sheet(name: str) -> Table:
    """Return one method for the terminal, all of it.

    Raises:
        ValueError: no method is called so.
    """
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for heading, value in facts(name).items():
        table.add_row(heading, value)
    return table


def _written(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in parameters.items()) or "none"
