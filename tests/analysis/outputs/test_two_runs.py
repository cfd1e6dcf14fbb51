"""Two runs, set side by side."""

import shutil
from contextlib import closing

import pytest
import small_runs

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
    for name in ("spec.json", "pairs.duckdb"):
        shutil.copy(both[0].run / name, tmp_path / name)
    with Store.create(tmp_path / "pairs.duckdb") as store, closing(store.cursor()) as cursor:
        cursor.execute("DELETE FROM pictures WHERE method = 'regulation' AND prompt = 'a cat and a dog' AND seed = 1")
    with pytest.raises(Unbalanced, match=r"cells are missing: .*: regulation on 'a cat and a dog' \(.* of 1 images\)"):
        compare_runs(tmp_path, both[1].run)
    tables = compare_runs(tmp_path, both[1].run, allow_missing=True)
    table = next(table for table in tables if table.columns[0].metric == "clip_cos")
    counts = {row.method: [cell.images for cell in row.cells if isinstance(cell, Number)] for row in table.rows}
    assert counts["regulation"] == [5, 6, 5]
    assert counts["plain"] == [6, 6, 6]
    assert "of the images that both runs have" in table.caption


def test_folders_that_are_no_two_runs_are_refused(both, tmp_path):
    with pytest.raises(ValueError, match=r"must be the folder of a run, it has no spec\.json"):
        compare_runs(both[0].run, tmp_path)
    with pytest.raises(ValueError, match="the runs must be two"):
        compare_runs(both[0].run, both[0].run)
