"""The comparison's table, worked out by hand on rows whose outcomes are known."""

from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.comparison import Compared, as_table, found_matrix, summary
from analysis.stats import bootstrap_rate, two_way_interval

PROMPTS = {"a cat and a dog": True, "a cat and a bird": True, "a dog and a bird": False}
FOUND = {  # prompt x seed
    "plain": [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]],
    "published": [[1, 1, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]],
}


@pytest.fixture
def rows() -> pd.DataFrame:
    """Two targets an image; where one is missing it is the second on even seeds and the first on odd ones."""
    return pd.DataFrame(
        [
            {"method": m, "prompt": p, "seen": seen, "seed": s, "target": t, "threshold": 0.5, "protocol": "p1"}
            | {"standing": "acts"}
            | {"score": 0.9 if FOUND[m][i][s] or (t == "second") == bool(s % 2) else 0.5}
            for m in FOUND
            for i, (p, seen) in enumerate(PROMPTS.items())
            for s in range(4)
            for t in ("first", "second")
        ]
    )


def test_an_image_is_found_when_all_its_targets_are_above_the_threshold(rows):
    for method, found in FOUND.items():
        assert found_matrix(rows.sample(frac=1, random_state=0), method, list(PROMPTS), range(4)).tolist() == [
            [bool(value) for value in row] for row in found
        ]


def test_the_summary_counts_rates_and_outcomes_of_all_seen_and_unseen_pairs(rows):
    table = summary(rows).set_index(["method", "pairs"])
    line = table.loc[("published", "all")]
    assert (line["prompts"], line["images"], line["rate"]) == (3, 12, pytest.approx(5 / 12))
    assert line["difference"] == pytest.approx(2 / 12)
    assert line[["won", "lost", "both_found", "both_fail"]].tolist() == [3, 1, 2, 6]
    assert line[["better", "equal", "worse"]].tolist() == [2, 0, 1]
    assert table.loc[("published", "seen"), "images"] == 8
    assert table.loc[("published", "unseen"), "rate"] == pytest.approx(1 / 4)
    assert table.loc[("plain", "unseen"), "rate"] == 0
    assert table.loc[("plain", "all"), "difference"] == 0


@pytest.mark.parametrize("seeds", [4, 1])
def test_the_intervals_are_over_prompts_and_seeds_or_with_one_seed_over_prompts(rows, seeds):
    line = summary(rows[rows["seed"] < seeds]).set_index(["method", "pairs"]).loc[("published", "all")]
    order = [1, 0, 2]  # prompts in alphabetical order
    method, plain = (np.array(FOUND[name], float)[order, :seeds] for name in ("published", "plain"))
    alone = bootstrap_rate(method - plain, np.random.default_rng(2411_00640))
    interval = two_way_interval(method - plain) if seeds > 1 else alone
    assert (line["difference_low"], line["difference_high"]) == (interval.low, interval.high)


def test_kinds_without_prompts_have_no_row(rows):
    assert set(summary(rows[rows["seen"]])["pairs"]) == {"all", "seen"}


def test_a_missing_image_is_an_error(rows):
    short = rows[(rows["method"] == "plain") | (rows["seed"] != 3) | ~rows["seen"]]
    with pytest.raises(ValueError, match="2 of published are missing"):
        summary(short)


def test_protocols_are_never_mixed(rows):
    rows.loc[0, "protocol"] = "p2"
    with pytest.raises(ValueError, match="of one protocol, got p2, p1"):
        summary(rows)


def test_the_table_prints_percent_points_and_the_protocol(rows):
    console = Console(record=True, width=160, file=StringIO())
    console.print(as_table(Compared(summary(rows), "3 prompts x 4 seeds", Path("runs/one"))))
    lines = console.export_text().splitlines()
    (line,) = [line for line in lines if "published" in line and "all" in line]
    for cell in ("41.7", "16.7 [", "25.0%", "8.3%", "50.0%"):
        assert cell in line
    assert any("protocol p1" in line for line in lines)


def test_a_cell_shows_the_same_numbers_and_says_where_the_rest_is(rows):
    shown = Compared(summary(rows), "3 prompts <x> 4 seeds", Path("runs/one"))._repr_html_()
    for part in (
        "3 prompts &lt;x&gt; 4 seeds",
        "protocol p1",
        ">41.7<",
        ">16.7 [",
        ">25.0%<",
        "read_shards('runs/one/rows')",
    ):
        assert part in shown


def test_the_table_cuts_nothing_off_in_80_columns(rows):
    name = "16x16 layers, step 100, until 0.25, decay 0.99"
    rows["method"] = rows["method"].replace("published", name)
    console = Console(record=True, width=80, file=StringIO())
    console.print(as_table(Compared(summary(rows), "3 prompts x 4 seeds", Path("runs/one"))))
    text = console.export_text()
    assert "…" not in text
    assert all(part in text for part in ("16x16", "0.99", "difference,", "points [95 %]"))
