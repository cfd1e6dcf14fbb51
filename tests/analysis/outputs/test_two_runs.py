"""Two runs, set side by side."""

import shutil
from contextlib import closing
from io import StringIO

import pytest
import small_runs
from rich.console import Console

from analysis.outputs.two_runs import compare_runs
from analysis.paper.cells import Number
from analysis.scoreboard import Unbalanced
from regulate import AttentionRegulation
from tracer.store import Store


@pytest.fixture(scope="module")
def both(tiny_model, tmp_path_factory):
    """The small run, and the same with more guidance and a method less."""
    out = tmp_path_factory.mktemp("runs")
    small = small_runs.small(tiny_model)
    other = small_runs.changed(small, guidance=12.0, methods={"regulation": AttentionRegulation()})
    return [small_runs.Quiet()(experiment, out) for experiment in (small, other)]


def test_the_difference_is_that_of_the_paired_images(both):
    tables = compare_runs(both[0].run, both[1].run)
    table = next(table for table in tables if table.columns[0].metric == "clip_cos")
    rows = {row.method: row for row in table.rows}
    for name in ("plain", "regulation"):
        asked = f"metric == 'clip_cos' and method == '{name}'"
        means = [one.parts[0].values.query(asked)["value"].mean() for one in both]
        first, second, difference = rows[name].cells
        assert [first.value, second.value] == pytest.approx(means)
        assert difference.value == pytest.approx(means[1] - means[0])
        assert means[0] != means[1]
    assert not isinstance(rows["syngen"].cells[1], Number)  # the second run has none


def test_runs_with_missing_cells_are_refused_with_their_list_or_compared_on_what_there_is(both, tmp_path):
    lost = "method = 'regulation' AND prompt = 'a cat and a dog' AND seed = 1"
    gappy = copied(both[0].run, tmp_path / "gappy", lost)
    with pytest.raises(
        Unbalanced, match=r"cells are missing: gappy: regulation on 'a cat and a dog' \(.* of 1 images\)"
    ):
        compare_runs(gappy, both[1].run)
    tables = compare_runs(gappy, both[1].run, allow_missing=True)
    table = next(table for table in tables if table.columns[0].metric == "clip_cos")
    counts = {row.method: [cell.images for cell in row.cells if isinstance(cell, Number)] for row in table.rows}
    assert counts["regulation"] == [5, 6, 5]
    assert counts["plain"] == [6, 6, 6]
    assert "of the images that both runs have" in table.caption


def copied(run, folder, *changes):
    """A run's scores, of which some are deleted."""
    folder.mkdir()
    for name in ("spec.json", "pairs.duckdb"):
        shutil.copy(run / name, folder / name)
    with Store.create(folder / "pairs.duckdb") as store, closing(store.cursor()) as cursor:
        for change in changes:
            cursor.execute(f"DELETE FROM pictures WHERE {change}")
    return folder


def test_a_prompt_that_one_run_lacks_altogether_is_refused_with_the_list_or_left_out(both, tmp_path):
    less = copied(both[1].run, tmp_path / "less", "prompt = 'a cat and a dog'")
    said = r"cells are missing: less: plain on 'a cat and a dog' \(\w+ of 2 images\); .*less: regulation on "
    for runs in ((both[0].run, less), (less, both[0].run)):
        with pytest.raises(Unbalanced, match=said):
            compare_runs(*runs)
    tables = compare_runs(both[0].run, less, allow_missing=True)
    table = next(table for table in tables if table.columns[0].metric == "clip_cos")
    counts = {row.method: [cell.images for cell in row.cells if isinstance(cell, Number)] for row in table.rows}
    assert counts == {"plain": [6, 4, 4], "regulation": [6, 4, 4], "syngen": [6]}


def test_a_method_that_only_one_run_has_is_told_of_and_no_error_but_one_must_be_common(both, tmp_path):
    console = Console(file=StringIO(), width=200)
    compare_runs(both[0].run, both[1].run, console)
    assert f"pairs: only {both[0].run.name} has the method syngen\n" in console.file.getvalue()
    plain = copied(both[0].run, tmp_path / "plain", "method <> 'plain'")
    other = copied(both[1].run, tmp_path / "other", "method = 'plain'")
    with pytest.raises(ValueError, match="the runs must have a method in common, got none in pairs"):
        compare_runs(plain, other)


def test_the_caption_says_what_numbers_are_compared_with(both):
    tables = {table.columns[0].metric: table.caption for table in compare_runs(both[0].run, both[1].run)}
    assert "LPIPS is the distance to the image of plain:" in tables["lpips-tiny"]
    assert f"lower than {both[0].run.name} (paired test" in tables["clip_cos"]


def test_folders_that_are_no_two_runs_are_refused(both, tmp_path):
    with pytest.raises(ValueError, match=r"must be the folder of a run, it has no spec\.json"):
        compare_runs(both[0].run, tmp_path)
    with pytest.raises(ValueError, match="the runs must be two"):
        compare_runs(both[0].run, both[0].run)
