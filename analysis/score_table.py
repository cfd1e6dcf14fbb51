"""Scores as the terminal shows them: a table per metric, its protocol below it, and what to beware of."""

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from metrics.pictures import Problem

TITLES = {
    "detection_rate": "Detection rate: images that show all targets, %",
    "clip_cos": "CLIP score: cosine of image and prompt",
    "clip_min_half": "CLIP score: the smaller one of the prompt's halves",
    "lpips": "LPIPS to the baseline's image: less is closer to it, not better",
    "lpips-tiny": "LPIPS of the emoji world's own trunk to the baseline's image: less is closer to it, not better",
}
SHOWN_PROBLEMS = 10


def print_scores(console: Console, table: pd.DataFrame, sets: pd.DataFrame, problems: Sequence[Problem]) -> None:
    """Print all that a scoring came to."""
    for _, part in table.groupby(["metric", "protocol"], sort=False) if len(table) else ():
        console.print(metric_table(part))
    if len(sets):
        console.print(set_table(sets))
        for warning in dict.fromkeys(text for texts in sets["warnings"] for text in texts):
            console.print(f"beware: {warning}", highlight=False, soft_wrap=True)
    for problem in problems[:SHOWN_PROBLEMS]:
        console.print(
            f"{problem.path}: {problem.reason}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )
    if len(problems) > SHOWN_PROBLEMS:
        console.print(f"{len(problems) - SHOWN_PROBLEMS} more problems", style="yellow", highlight=False)


def metric_table(part: pd.DataFrame) -> Table:
    """Return one metric's table: a row per method."""
    first = part.iloc[0]
    table = Table(title=TITLES.get(first["metric"], first["metric"]), title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.caption_justify = "left"
    counted = len(part[["prompts", "images"]].drop_duplicates()) > 1
    intervals = " or ".join(part["interval"].unique())
    table.caption = f"protocol {first['protocol']}\n{_size(part, counted)}; intervals over {intervals}"
    compared = "p_holm" in part and bool(part["p_holm"].notna().any())
    table.add_column("method")
    if counted:
        table.add_column("n", justify="right")
    table.add_column("mean [95 %]", justify="right", no_wrap=True)
    if compared:
        table.caption += "; p by Holm over the table"
        for heading in ("difference [95 %]", "p", "better", "equal", "worse"):
            table.add_column(heading, justify="right", no_wrap=True)
    for _, line in part.iterrows():
        cells = [str(line["method"]), *[str(line["images"])] * counted, _spread(line, "value", first["metric"])]
        if compared:
            cells += _compared(line, first["metric"]) if float(line["p_holm"]) >= 0 else ["-"] * 5
        table.add_row(*cells)
    return table


def set_table(sets: pd.DataFrame) -> Table:
    """Return the table of FID, KID and CMMD: a row per method and metric."""
    table = Table(title="Sets, compared with the reference images: less is closer", title_justify="left", padding=0)
    table.box, table.caption_justify = SIMPLE_HEAD, "left"
    table.caption = "protocols " + ", ".join(dict.fromkeys(sets["protocol"]))
    for heading in ("method", "metric"):
        table.add_column(heading)
    for heading in ("value [95 %]", "images", "references"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, row in sets.iterrows():
        value = f"{row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"
        table.add_row(row["method"], row["metric"], value, str(row["n"]), str(row["n_reference"]))
    return table


def _size(part: pd.DataFrame, counted: bool) -> str:
    if counted:
        least, most = part["images"].min(), part["images"].max()
        return f"{least} to {most} images a method: n, those that it has in common with the baseline"
    first = part.iloc[0]
    seeds = f" x {first['seeds']} seeds" if int(first["seeds"]) > 1 else ""
    return f"{first['images']} images a method: {first['prompts']} prompts{seeds}"


def _compared(line: pd.Series, metric: str) -> list[str]:
    counts = [str(int(line[name])) for name in ("better", "equal", "worse")]
    return [_spread(line, "difference", metric), f"{line['p_holm']:.3f}", *counts]


def _spread(line: pd.Series, name: str, metric: str) -> str:
    scale, digits = (100, 1) if metric == "detection_rate" else (1, 4)
    value, low, high = (scale * line[key] for key in (name, f"{name}_low", f"{name}_high"))
    if name == "value" and metric == "detection_rate":  # a t interval does not know where shares end
        low, high = max(low, 0.0), min(high, 100.0)
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
