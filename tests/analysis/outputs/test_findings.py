"""The sentences at the head of a page are the board's numbers, and claim a difference only where there is one."""

from dataclasses import replace
from html import escape

import numpy as np
import pandas as pd

from analysis.outputs.findings import findings
from analysis.outputs.publish import publish


def with_rates(results, more: float):
    """The run with made-up verdicts, of 40 prompts and 4 seeds, in which regulation shows so much more."""
    (part,) = results.parts
    rng = np.random.default_rng(0)
    chance = rng.random((40, 4))
    grids = {"plain": chance < 0.5, "regulation": chance < 0.5 + more, "syngen": chance < 0.5}
    values = pd.DataFrame(
        {
            "method": method,
            "prompt_id": f"p{p}",
            "prompt": f"prompt {p}",
            "seed": seed,
            "tag": "",
            "value": float(found),
        }
        | {"metric": "detection_rate", "protocol": part.protocol("detection_rate"), "compared_with": None}
        for method, grid in grids.items()
        for (p, seed), found in np.ndenumerate(grid)
    )
    part = replace(part, values=values, images=values, methods=tuple(grids))
    return replace(results, parts=(part,)), part.board.set_index("method")


def test_a_method_that_differs_is_named_with_its_difference_and_interval(results):
    made, board = with_rates(results, 0.2)
    line = board.loc["regulation"]
    difference, low, high = (f"{100 * line[f'difference{end}']:+.1f}" for end in ("", "_low", "_high"))
    plain = f"{100 * board.at['plain', 'value']:.1f}%"
    assert findings(made) == (
        f"In detection rate 1 of 2 methods differs significantly from plain ({plain}): regulation {difference} points "
        f"[{low}, {high}] (95 % intervals; paired test, Holm over the 2 differences of the table, p < 0.05).",
    )
    assert float(low) > 0


def test_where_none_differs_that_is_said_with_the_largest_difference(results):
    made, board = with_rates(results, 0.02)
    assert board["p_holm"].min() > 0.05
    assert board.at["regulation", "difference"] > 0
    (said,) = findings(made)
    difference = f"{100 * board.at['regulation', 'difference']:+.1f}"
    assert said.startswith("In detection rate no method differs significantly from plain (")
    assert f"; most regulation, by {difference} points [" in said


def test_the_page_says_it_below_its_question(results):
    page = publish(replace(results, experiment=replace(results.experiment, shows=()))).read_text()
    (said,) = findings(results)
    assert said.startswith("In detection rate no method differs from plain (0.0%) (95 % intervals;")  # nothing is found
    assert f"<li>{escape(said)}</li>" in page
    assert page.index(results.experiment.question) < page.index(escape(said)) < page.index("Warnings")


def test_parts_are_named_where_there_are_several_and_without_other_methods_nothing_is_said(results):
    (part,) = results.parts
    other = replace(part, planned=replace(part.planned, part=replace(part.planned.part, title="Others")))
    said = findings(replace(results, parts=(part, other)))
    assert [sentence.split(":")[0] for sentence in said] == ["Pairs", "Others"]
    alone = replace(part, methods=("plain",), values=part.values[part.values["method"] == "plain"])
    assert findings(replace(results, parts=(alone,))) == ()
