"""Two runs, set side by side."""

import pytest
import small_runs

from analysis.outputs.two_runs import compare_runs
from analysis.paper.cells import Number
from regulate import AttentionRegulation


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


def test_folders_that_are_no_two_runs_are_refused(both, tmp_path):
    with pytest.raises(ValueError, match=r"must be the folder of a run, it has no spec\.json"):
        compare_runs(both[0].run, tmp_path)
    with pytest.raises(ValueError, match="the runs must be two"):
        compare_runs(both[0].run, both[0].run)
