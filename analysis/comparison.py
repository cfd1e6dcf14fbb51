"""From an experiment's rows to its table: who shows all targets how often, and how sure that is.

Conventions: an image counts if every target's score is above the protocol's threshold. Rates lie in [0, 1];
differences to "plain", paired image by image, in [-1, 1]. All prompts share their seeds, so the 95 % intervals are over
prompts and seeds (`analysis.stats.two_way_interval`); with one seed they are over prompts, for this seed only, with one
prompt over its seeds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from analysis.plan import PLAIN
from analysis.stats import Interval, bootstrap_rate, two_way_interval, win_tie_loss

BOOTSTRAP_SEED = 2411_00640
DOUBT = "intervals over prompts and seeds, of a single prompt or seed over the other"
HEADINGS = (
    "method", "pairs", "images", "both found, %", "difference, points [95 %]", "won", "lost", "both found", "both fail",
)  # fmt: skip
PAIRS = {"all": (True, False), "seen": (True,), "unseen": (False,)}


def found_matrix(
    rows: pd.DataFrame, method: str, prompts: Sequence[str], seeds: Sequence[int]
) -> Bool[np.ndarray, "prompt seed"]:
    """Return whether each image of a method shows all its targets.

    Raises:
        ValueError: an image is missing.
    """
    mine = rows[rows["method"] == method]
    found = (mine["score"] > mine["threshold"]).groupby([mine["prompt"], mine["seed"]]).all()
    whole = found.unstack("seed").reindex(index=list(prompts), columns=list(seeds))
    if missing := int(whole.isna().to_numpy().sum()):
        raise ValueError(f"rows must hold every image, {missing} of {method} are missing")
    return whole.to_numpy(bool)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method and kind of pairs: all, those seen together in training, and those never seen.

    Args:
        rows: as `analysis.shards` describes them, of one plan, "plain" among the methods.

    Returns:
        Columns method, pairs, prompts, images, rate, rate_low, rate_high, difference, difference_low,
        difference_high, won, lost, both_found, both_fail (images), better, equal, worse (prompts), protocol, standing:
        "acts", or of how many images the method had nothing to do, which are plain ones.
        A kind that the plan has no prompt of has no row.

    Raises:
        ValueError: an image is missing, or rows of several protocols are mixed.
    """
    protocols = rows["protocol"].unique()
    if len(protocols) != 1:
        raise ValueError(f"rows must be of one protocol, got {', '.join(protocols)}")
    seeds = sorted(rows["seed"].unique().tolist())
    lines = []
    for method in rows["method"].unique():
        for kind, flags in PAIRS.items():
            prompts = sorted(rows.loc[rows["seen"].isin(flags), "prompt"].unique())
            if prompts:
                theirs = found_matrix(rows, PLAIN, prompts, seeds)
                line = _line(found_matrix(rows, method, prompts, seeds), theirs)
                told = {"protocol": protocols[0], "standing": _standing(rows, method, prompts)}
                lines.append({"method": method, "pairs": kind} | line | told)
    return pd.DataFrame(lines)


def _standing(rows: pd.DataFrame, method: str, prompts: Sequence[str]) -> str:
    mine = rows[(rows["method"] == method) & rows["prompt"].isin(prompts)].drop_duplicates(["prompt", "seed"])
    idle = int((mine["standing"] == "no-op").sum())
    return f"no-op for {idle} of {len(mine)} images" if idle else "acts"


def _line(found: Bool[np.ndarray, "prompt seed"], plain: Bool[np.ndarray, "prompt seed"]) -> dict[str, object]:
    rate, difference = (
        _interval(found.astype(float)).within(0.0, 1.0),
        _interval(found.astype(float) - plain).within(-1.0, 1.0),
    )
    record = win_tie_loss(found.astype(float), plain.astype(float))
    return {
        "prompts": len(found),
        "images": found.size,
        **rate.columns("rate"),
        **difference.columns("difference"),
        "won": int((found & ~plain).sum()),
        "lost": int((plain & ~found).sum()),
        "both_found": int((found & plain).sum()),
        "both_fail": int((~found & ~plain).sum()),
        "better": record.wins,
        "equal": record.ties,
        "worse": record.losses,
    }


def _interval(values: Float[np.ndarray, "prompt seed"]) -> Interval:
    if min(values.shape) > 1:
        return two_way_interval(values)
    return bootstrap_rate(values if len(values) > 1 else values.T, np.random.default_rng(BOOTSTRAP_SEED))


@dataclass(frozen=True, eq=False)
class Compared:
    """Methods beside the plain model; a notebook's cell shows them.

    Attributes:
        table: a row per method and kind of pairs, as `summary` has them; ``standing`` is "n/a" and why where a method
            lacks what it needs.
        title: how many prompts and seeds these were.
        out: folder of ``rows/*.parquet``, every target's score.
    """

    table: pd.DataFrame
    title: str
    out: Path

    def __repr__(self) -> str:
        return f"Compared({self.title!r}, out={str(self.out)!r})"

    def _repr_html_(self) -> str:
        shown = pd.DataFrame(list(_as_shown(self.table)), columns=list(HEADINGS)).to_html(index=False, border=0)
        rows = escape(repr(str(self.out / "rows")), quote=False)
        after = (
            f"<code>.table</code> has the numbers; <code>analysis.shards.read_shards({rows})</code> has every target's "
            "score; <code>attnreg run</code> adds other metrics, figures and pictures"
        )
        head = f"<p><b>{escape(self.title)}</b>, protocol {escape(_protocol(self.table))}; {DOUBT}</p>"
        return f"{head}{shown}<p>{after}</p>"


def tell(console: Console, compared: Compared) -> Compared:
    """Print a comparison, and return it; in a notebook it is not printed, its cell shows what is returned."""
    if not console.is_jupyter:
        console.print(as_table(compared))
    return compared


def as_table(compared: Compared) -> Table:
    """Return a comparison for the terminal, rates in percent, differences in points."""
    table = Table(title=compared.title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.caption, table.caption_justify = f"protocol {_protocol(compared.table)}; {DOUBT}", "left"
    for heading in HEADINGS:
        left = heading in ("method", "pairs")
        lines = heading.replace("both ", "both\n").replace("difference, ", "difference,\n")
        table.add_column(lines, justify="left" if left else "right", vertical="bottom", no_wrap=heading != "method")
    for cells in _as_shown(compared.table):
        table.add_row(cells[0].replace(" (", "\n("), *cells[1:])
    return table


def _protocol(lines: pd.DataFrame) -> str:
    return str(lines["protocol"].iat[0])


def _as_shown(lines: pd.DataFrame) -> Iterator[list[str]]:
    """Yield what each row says under `HEADINGS`; a method is named once."""
    named = ""
    for line in lines.itertuples(index=False):
        if line.standing.startswith("n/a"):
            yield [f"{line.method} ({line.standing})", "n/a", *[""] * 7]
            continue
        difference = Interval(line.difference, line.difference_low, line.difference_high)
        shares = [f"{getattr(line, name) / line.images:.1%}" for name in ("won", "lost", "both_found", "both_fail")]
        against = ["-"] * 5 if line.method == PLAIN else [str(difference), *shares]
        label, named = "" if line.method == named else line.method, line.method
        label += f" ({line.standing})" if label and line.standing != "acts" else ""
        yield [label, line.pairs, f"{line.images:.0f}", f"{100 * line.rate:.1f}", *against]
