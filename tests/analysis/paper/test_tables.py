"""A paper's tables: which numbers they hold, what is bold, what has a dagger, and what the caption says."""

import numpy as np
import pandas as pd
import pytest

from analysis.paper.cells import TIMES, Number
from analysis.paper.costs import cost_numbers, cost_tables
from analysis.paper.files import html_of, latex_of, markdown_of
from analysis.paper.tables import comparison_table, method_table, model_table, set_metric_table
from analysis.scoreboard import Unbalanced, cells, pairwise, scoreboard
from analysis.significance import holm, two_way_test
from analysis.stats import two_way_interval

PROTOCOLS = {"clip_cos": "clip#1", "detection_rate": "owl#2@0.10,argmax", "lpips": "lpips#3"}
SHIFTS = {"plain": 0.0, "worse": -0.02, "good": 0.02, "best": 0.022}


def matrix(shift: float, seed: int, prompts: int = 8, seeds: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    common = rng.normal(0.3, 0.01, (prompts, seeds))
    return common + shift + np.random.default_rng([seed, int(1e4 * abs(shift))]).normal(0, 0.004, (prompts, seeds))


def matrices(methods=tuple(SHIFTS), seed: int = 0, seeds: int = 4) -> dict[str, dict[str, np.ndarray]]:
    clip = {method: matrix(SHIFTS[method], seed, seeds=seeds) for method in methods}
    found = {method: (values > 0.305).astype(float) for method, values in clip.items()}
    far = {method: values for method, values in clip.items() if method != "plain"}
    return {"clip_cos": clip, "detection_rate": found, "lpips": far}


def values_of(data, world: str = "", protocols=PROTOCOLS, first_seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "method": method,
            "prompt_id": f"p{p}",
            "prompt": f"prompt {p}",
            "seed": s + first_seed,
            "tag": "",
            "metric": metric,
            "protocol": world + protocols[metric],
            "value": value,
            "compared_with": "plain" if metric == "lpips" else None,
        }
        for metric, by_method in data.items()
        for method, values in by_method.items()
        for p, row in enumerate(values)
        for s, value in enumerate(row)
    )


def board_of(values: pd.DataFrame) -> pd.DataFrame:
    return scoreboard(cells(values, values["method"].unique().tolist(), "plain"), "plain")


def numbers_of(table, source: str, metric: str) -> dict[str, object]:
    return {
        row.method: cell for row, column, cell in table.numbers() if (column.source, column.metric) == (source, metric)
    }


@pytest.fixture(scope="module")
def data():
    return {"COCO": matrices(), "A&E": matrices(("plain", "worse", "best"), seed=1)}


@pytest.fixture(scope="module")
def values(data):
    return {title: values_of(one) for title, one in data.items()}


@pytest.fixture(scope="module")
def boards(values):
    return {title: board_of(one) for title, one in values.items()}


@pytest.fixture(scope="module")
def table(boards):
    return method_table(boards)


@pytest.fixture(scope="module")
def bold_table(boards, values):
    return method_table(boards, values=values, names={"plain": "Original"})


def test_rows_and_columns_are_the_papers(boards):
    table = method_table(boards, not_applicable={"A&E": ["good"]}, names={"plain": "Original", "best": "Ours"})
    assert [(row.method, row.label) for row in table.rows] == [
        ("plain", "Original"),
        ("best", "Ours"),
        ("worse", "worse"),
        ("good", "good"),
    ]
    assert table.groups == [("COCO", 3), ("A&E", 3)]
    assert [column.title for column in table.columns] == ["CLIP ↑", "Det. rate ↑", "LPIPS ↓"] * 2


def test_a_cell_is_missing_or_not_applicable_or_has_the_boards_numbers(boards, data):
    table = method_table(boards, not_applicable={"A&E": ["good"]})
    assert numbers_of(table, "COCO", "lpips")["plain"] == "--"
    assert numbers_of(table, "A&E", "clip_cos")["good"] == "n/a"
    cell = numbers_of(table, "COCO", "clip_cos")["best"]
    clip = data["COCO"]["clip_cos"]
    mean, change = two_way_interval(clip["best"]), two_way_interval(clip["best"] - clip["plain"])
    assert (cell.value, cell.low, cell.high) == pytest.approx((mean.estimate, mean.low, mean.high))
    assert (cell.difference, cell.difference_low) == pytest.approx((change.estimate, change.low))
    assert (cell.prompts, cell.seeds, cell.images, cell.protocol) == (8, 4, 32, "clip#1")


def test_the_baseline_comes_first_wherever_a_board_has_it(boards):
    turned = {"COCO": boards["COCO"].iloc[::-1]}
    assert method_table(turned).rows[0].method == "plain"


def test_a_method_without_numbers_that_applies_has_a_dash(table):
    assert numbers_of(table, "A&E", "clip_cos")["good"] == "--"


def test_p_values_are_corrected_over_all_differences_that_the_table_shows(boards, table):
    shown = {
        (title, line["metric"], line["method"]): line["p"]
        for title, board in boards.items()
        for _, line in board.iterrows()
        if line["p"] >= 0
    }
    expected = holm({str(key): p for key, p in shown.items()})
    found = {
        (column.source, column.metric, row.method): cell.p_holm
        for row, column, cell in table.numbers()
        if isinstance(cell, Number) and cell.p_holm >= 0
    }
    assert len(found) == 10  # two metrics, three and two methods
    assert {str(key): p for key, p in found.items()} == pytest.approx(expected)
    fewer = method_table(boards, metrics=["clip_cos"])
    assert numbers_of(fewer, "COCO", "clip_cos")["good"].p_holm < numbers_of(table, "COCO", "clip_cos")["good"].p_holm


def test_a_dagger_tells_higher_from_lower(table):
    cells_of = numbers_of(table, "COCO", "clip_cos")
    assert {method: cell.mark for method, cell in cells_of.items()} == {
        "plain": "",
        "worse": "‡",
        "good": "†",
        "best": "†",
    }


def test_bold_are_the_best_and_what_a_paired_test_does_not_find_worse(bold_table, data):
    cells_of = numbers_of(bold_table, "COCO", "clip_cos")
    clip = data["COCO"]["clip_cos"]
    others = {method: two_way_test(clip[method], clip["best"]).p for method in ("plain", "worse", "good")}
    assert {m: cell.p_best for m, cell in cells_of.items()} == pytest.approx({**holm(others), "best": 1.0})
    assert {method for method, cell in cells_of.items() if cell.bold} == {"good", "best"}
    assert clip["good"].mean() < clip["best"].mean()


def test_lpips_is_never_bold_and_nothing_is_without_values(bold_table, table):
    assert not any(cell.bold for cell in numbers_of(bold_table, "COCO", "lpips").values() if isinstance(cell, Number))
    assert not any(cell.bold for _, _, cell in table.numbers() if isinstance(cell, Number))
    assert ("Bold" in bold_table.caption, "Bold" in table.caption) == (True, False)


def test_values_of_another_board_are_refused(boards, values):
    with pytest.raises(ValueError, match=r"values must be what the board was made of \(COCO, clip_cos\)"):
        method_table(boards, values=values | {"COCO": values_of(matrices(seed=9))})
    with pytest.raises(ValueError, match="values must be given for every board, A&E has none"):
        method_table(boards, values={"COCO": values["COCO"]})


def test_a_method_that_does_not_apply_must_have_no_numbers(boards):
    with pytest.raises(ValueError, match=r"must have no numbers \(COCO\), got good"):
        method_table(boards, not_applicable={"COCO": ["good"]})


def test_worlds_are_not_mixed_and_the_emoji_world_is_marked(boards, table, data):
    emoji = board_of(values_of(data["COCO"], world="emoji-"))
    with pytest.raises(ValueError, match="boards must be of one world, got clip#1, emoji-clip#1"):
        method_table({"COCO": boards["COCO"], "A&E": emoji})
    marked = method_table({"COCO": emoji})
    assert marked.caption.startswith("Emoji world")
    assert (marked.world, table.world) == ("emoji", "real")
    assert "Emoji" not in table.caption


def test_a_metric_of_two_protocols_is_refused(boards, data):
    other = board_of(values_of(data["COCO"], protocols=PROTOCOLS | {"clip_cos": "clip#9"}))
    with pytest.raises(ValueError, match=r"clip_cos must have one protocol \(COCO\), got clip#1, clip#9"):
        method_table({"COCO": pd.concat([boards["COCO"], other])})


def test_the_caption_says_sizes_intervals_tests_and_protocols(bold_table):
    text = bold_table.caption
    assert f"8 prompts {TIMES} 4 seeds, 32 images a method." in text
    assert "95 % intervals over prompts and seeds." in text
    assert "lower than Original (paired test, Holm over the 10 differences of the table, p < 0.05)" in text
    assert "less means fewer edits, not better" in text
    assert text.endswith("Protocols: CLIP clip#1; Det. rate owl#2@0.10,argmax; LPIPS lpips#3.")


def test_the_caption_tells_sets_of_different_sizes_and_intervals_apart(boards):
    one = board_of(values_of(matrices(seed=4, seeds=1)))
    text = method_table({"COCO": boards["COCO"], "FID set": one}).caption
    assert (
        f"COCO: 8 prompts {TIMES} 4 seeds, 32 images a method; FID set: 8 prompts {TIMES} 1 seed, 8 images a method."
        in text
    )
    assert "over COCO: prompts and seeds; FID set: prompts; these seeds only." in text


def costs_of(seconds: dict[str, list[float]], passes: dict[str, int], graded: int = 0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "method": method,
            "prompt_id": f"p{place}",
            "images": 4,
            "seconds": second,
            "passes": float(passes[method]),
            "gradient_passes": graded if method == "best" else 0,
        }
        for method, times in seconds.items()
        for place, second in enumerate(times)
    )


def test_overhead_is_the_median_of_paired_ratios(boards):
    # ratios 1.5, 3, 1.2; the ratio of medians would be 3 / 2
    costs = costs_of({"plain": [2.0, 1.0, 10.0], "best": [3.0, 3.0, 12.0]}, {"plain": 50, "best": 75}, graded=25)
    table = method_table(boards, costs)
    assert table.groups[-1] == ("Cost", 3)
    overhead = numbers_of(table, "costs", "overhead")
    assert (overhead["plain"], overhead["worse"]) == ("--", "--")
    assert overhead["best"].value == pytest.approx(0.5)
    assert (overhead["best"].low, overhead["best"].high) == pytest.approx((0.2, 2.0))  # of three, the ends are drawn
    passes = numbers_of(table, "costs", "passes")["best"]
    assert passes.value == 1.5
    assert np.isnan(passes.low)  # all prompts have this ratio
    assert numbers_of(table, "costs", "gradient_passes")["best"].value == 0.5
    assert (overhead["best"].prompts, overhead["best"].images) == (3, 12)
    assert "median over 3 prompts" in table.caption


def test_without_gradients_there_is_no_column_of_them(boards):
    costs = costs_of({"plain": [2.0, 1.0], "best": [3.0, 3.0]}, {"plain": 50, "best": 50})
    assert [c.metric for c in method_table(boards, costs).columns if c.source == "costs"] == ["overhead", "passes"]


def test_of_several_sets_each_has_its_overhead_beside_its_metrics_and_a_table_of_each_cost(boards):
    costs = {
        "COCO": costs_of({"plain": [2.0, 1.0], "best": [3.0, 1.5]}, {"plain": 50, "best": 50}),
        "A&E": costs_of({"plain": [2.0], "best": [6.0]}, {"plain": 50, "best": 100}),
    }
    table = method_table(boards, costs, {"A&E": ["dense"]})
    assert [column.metric for column in table.columns if column.source == "COCO"][-1] == "overhead"
    assert [group for group, _ in table.groups] == ["COCO", "A&E"]
    assert numbers_of(table, "COCO", "overhead")["best"].value == pytest.approx(0.5)
    assert numbers_of(table, "A&E", "overhead")["best"].value == pytest.approx(2)
    assert numbers_of(table, "A&E", "overhead")["dense"] == "n/a"
    assert "median over 2 (COCO), 1 (A&E) prompts" in table.caption
    by_model = cost_tables({title: cost_numbers(one, "plain") for title, one in costs.items()}, "real")
    assert list(by_model) == ["overhead", "passes"]
    assert [column.title for column in by_model["passes"].columns] == ["COCO", "A&E"]
    assert numbers_of(by_model["passes"], "A&E", "passes")["best"].value == 2
    alone = method_table(boards, {"A&E": costs["A&E"]})
    assert alone.groups[-1] == ("Cost, A&E", 2)


def test_where_numbers_are_of_different_images_each_says_of_how_many():
    values = values_of(matrices(seed=0))
    lost = values[~((values["method"] == "best") & (values["prompt"] == values["prompt"].iloc[0]))]
    methods = list(dict.fromkeys(values["method"]))
    table = method_table({"COCO": pairwise(lost, methods, "plain")}, metrics=["clip_cos"])
    numbers = numbers_of(table, "COCO", "clip_cos")
    assert numbers["best"].images < numbers["plain"].images
    assert all(number.counted for number in numbers.values())
    fewest, most = numbers["best"].images, numbers["plain"].images
    assert f"{fewest} to {most} images a method: n, those that it has in common with plain" in table.caption
    for text in (markdown_of(table), latex_of(table), html_of(table)):
        assert f"n {fewest}" in text
        assert f"n {most}" in text
    whole = method_table({"COCO": pairwise(values, methods, "plain")}, metrics=["clip_cos"])
    assert f"n {most}" not in markdown_of(whole)


def test_a_method_that_missed_a_prompt_is_compared_on_its_own(boards):
    costs = costs_of({"plain": [2.0, 1.0, 4.0], "best": [3.0, 2.0]}, {"plain": 50, "best": 50})
    cell = numbers_of(method_table(boards, costs), "costs", "overhead")["best"]
    assert (cell.value, cell.prompts) == (pytest.approx(0.75), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda costs: pd.concat([costs, costs.head(1)]), "one row per method and prompt_id"),
        (lambda costs: costs.assign(images=[4, 4, 4, 8]), "batches of one size"),
        (lambda costs: costs.iloc[1:], "positive seconds of 'plain' for every prompt"),
        (lambda costs: costs.assign(seconds=[0.0, 1, 1, 1]), "positive seconds of 'plain' for every prompt"),
    ],
)
def test_costs_that_do_not_pair_are_refused(boards, change, message):
    costs = costs_of({"plain": [2.0, 1.0], "best": [3.0, 3.0]}, {"plain": 50, "best": 50})
    with pytest.raises(ValueError, match=message):
        method_table(boards, change(costs))


def test_a_table_by_models_has_the_metric_above_them(boards, values):
    table = model_table({"SD 1.4": boards["COCO"], "SD 2": boards["A&E"]}, "clip_cos", {"SD 2": ["good"]})
    assert table.groups == [("CLIP ↑", 2)]
    assert [column.title for column in table.columns] == ["SD 1.4", "SD 2"]
    assert numbers_of(table, "SD 2", "clip_cos")["good"] == "n/a"
    assert numbers_of(table, "SD 1.4", "clip_cos")["good"].mark == "†"
    with pytest.raises(ValueError, match="metric must be one of the boards', got 'fid'"):
        model_table(boards, "fid")


def sets_of(**changes) -> pd.DataFrame:
    line = {"protocol": "inception#1", "low": 19.0, "high": 23.0, "n": 300, "n_reference": 400, "warnings": ("few",)}
    return pd.DataFrame(
        {"method": method, "metric": metric, "value": value, **line, **changes}
        for method in ("plain", "best")
        for metric, value in (("kid", 0.01), ("fid", 21.0))
    )


def test_metrics_of_sets_are_not_bold_and_come_with_their_warnings():
    table = set_metric_table(sets_of(), names={"plain": "Original"})
    assert [column.metric for column in table.columns] == ["fid", "kid"]
    assert numbers_of(table, "sets", "fid")["best"] == Number(21.0, 19.0, 23.0, "inception#1", images=300)
    assert table.caption.startswith("300 images a method, 400 references.")
    assert "Nothing is bold" in table.caption
    assert "Beware: few." in table.caption
    assert np.isnan(numbers_of(set_metric_table(sets_of(low=None, high=None)), "sets", "fid")["best"].low)
    with pytest.raises(ValueError, match="at least one row"):
        set_metric_table(sets_of().head(0))


@pytest.fixture(scope="module")
def runs(data):
    again = matrices(seed=0)
    again["clip_cos"]["best"] = data["COCO"]["clip_cos"]["best"] + matrix(0.01, 3) - 0.3
    return {"first run": values_of(data["COCO"]), "second run": values_of(again)}


def test_two_runs_differ_by_what_their_images_do(runs, data):
    boards = {title: board_of(values) for title, values in runs.items()}
    table = comparison_table(boards, "clip_cos", runs)
    assert [column.title for column in table.columns] == ["first run", "second run", "Difference"]
    by_method = {row.method: row.cells[2] for row in table.rows}
    change = two_way_interval(matrix(0.01, 3) - 0.3)
    cell = by_method["best"]
    assert (cell.value, cell.low, cell.high) == pytest.approx((change.estimate, change.low, change.high))
    assert cell.mark == "†"
    assert (by_method["plain"].value, by_method["plain"].p_holm) == (0, 1)
    assert not any(row.cells[place].mark for row in table.rows for place in (0, 1))
    assert "lower than first run (paired test, Holm over the 4 differences of the table" in table.caption


@pytest.mark.parametrize("change", [{"first_seed": 1}, {"protocols": PROTOCOLS | {"clip_cos": "clip#9"}}])
def test_runs_of_other_seeds_or_protocols_have_no_difference(runs, data, change):
    other = runs | {"second run": values_of(data["COCO"], **change)}
    table = comparison_table({title: board_of(values) for title, values in other.items()}, "clip_cos", other)
    assert {row.cells[2] for row in table.rows} == {"--"}


def test_the_caption_of_two_runs_says_that_lpips_is_to_the_baseline_and_daggers_are_against_the_first_run(runs):
    lost = {title: run[(run["method"] != "best") | (run["seed"] > 0)] for title, run in runs.items()}
    boards = {title: pairwise(run, list(dict.fromkeys(run["method"])), "plain") for title, run in lost.items()}
    said = comparison_table(boards, "lpips", lost, names={"plain": "Original"}, shared=True).caption
    assert "LPIPS is the distance to the image of Original:" in said
    assert "24 to 32 images a method: n, those that it has in common with Original." in said
    assert "lower than first run (paired test" in said
    assert "first run:" not in said  # both runs have these sizes


def test_two_runs_have_a_difference_in_lpips_too(runs):
    boards = {title: board_of(values) for title, values in runs.items()}
    table = comparison_table(boards, "lpips", runs, {title: ["dense"] for title in boards})
    kinds = {row.method: row.cells[2] if isinstance(row.cells[2], str) else row.cells[2].value for row in table.rows}
    assert kinds == {"plain": "--", "worse": 0, "good": 0, "best": 0, "dense": "n/a"}
    with pytest.raises(ValueError, match="boards must be of two runs, got first run"):
        comparison_table({"first run": boards["first run"]}, "lpips", runs)


def test_a_board_of_fewer_images_than_the_values_is_told(values, boards):
    lacking = values["COCO"].drop(index=values["COCO"].index[-1])
    with pytest.raises(Unbalanced):
        board_of(lacking)
    with pytest.raises(ValueError, match="boards must be at least one"):
        method_table({})
