"""Figures of results: what is drawn is what the frame says, nothing is clipped, no name covers another."""

from itertools import combinations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.costs import relative_costs
from analysis.figures.results import (
    forest,
    outcome_bars,
    pareto,
    seed_strips,
    sweep,
    threshold_curves,
)
from analysis.figures.style import INK, NARROW, WIDTH, looks, wrapped

MINUS = "\N{MINUS SIGN}"
NAMES = [
    "plain", "regulation", "regulation-paper", "composable", "syngen", "dense-diffusion", "attend-and-excite",
    "predicated", "conform", "divide-and-bind", "initno", "attend-and-excite-fixed",
]  # fmt: skip
PRICES = [1, 1.5, 1.5, 2.2, 4.8, 1.8, 5.1, 4.9, 4.9, 5.2, 3.4, 5.1]
RATES = [0.50, 0.70, 0.69, 0.30, 0.66, 0.60, 0.67, 0.60, 0.72, 0.66, 0.62, 0.68]


def board_of(names: list[str], metric: str = "detection_rate") -> pd.DataFrame:
    """Intervals of 0.1 either way; every second method's difference is significant."""
    rows = []
    for place, name in enumerate(names):
        row = {"metric": metric, "protocol": "p", "method": name, "value": RATES[place]}
        row |= {"value_low": RATES[place] - 0.1, "value_high": RATES[place] + 0.1}
        if place:
            difference = RATES[place] - RATES[0]
            row |= {"difference": difference, "difference_low": difference - 0.1, "difference_high": difference + 0.1}
            row |= {"p_holm": 0.0004 if place % 2 else 0.25}
        rows.append(row)
    return pd.DataFrame(rows)


def costs_of(names: list[str]) -> pd.DataFrame:
    """Prompt b takes twice as long as prompt a, whatever the method."""
    return pd.DataFrame(
        [
            {"method": name, "prompt_id": prompt, "seconds": 3 * slow * PRICES[place], "passes": 50 * PRICES[place]}
            for place, name in enumerate(names)
            for prompt, slow in (("a", 1), ("b", 2))
        ]
    )


def values_of(grids: dict[str, list[list[float]]]) -> pd.DataFrame:
    """Detection rates from a matrix of prompts and seeds per method."""
    return pd.DataFrame(
        [
            {"method": method, "prompt_id": f"p{p}", "prompt": f"a {p}", "seed": s, "metric": "detection_rate"}
            | {"protocol": "p", "value": float(value)}
            for method, grid in grids.items()
            for p, row in enumerate(grid)
            for s, value in enumerate(row)
        ]
    )


GRIDS = {
    "regulation": [[1, 1, 1], [1, 0, 1]],
    "plain": [[1, 0, 0], [1, 1, 0]],
    "composable": [[0, 0, 0], [1, 1, 0]],
}
SCORES = pd.DataFrame(
    [
        {"method": method, "prompt": "a cat and a dog", "seed": seed, "target": target, "score": score}
        for method, both in (("plain", ((0.9, 0.15), (0.3, 0.4))), ("regulation", ((0.9, 0.5), (0.3, 0.4))))
        for seed, pair in enumerate(both)
        for target, score in zip(("cat", "dog"), pair, strict=True)
    ]
)
SWEPT = pd.DataFrame(
    [
        {"method": "regulation", "beta": beta, "value": value, "value_low": value - 0.1, "value_high": value + 0.1}
        for beta, value in ((1.0, 0.8), (0.1, 0.6))
    ]
    + [{"method": "plain", "beta": np.nan, "value": 0.5, "value_low": 0.4, "value_high": 0.7}]
)
DRAWN = {
    "forest": lambda width, caption="": forest(board_of(NAMES), "detection_rate", caption, width),
    "forest of one": lambda width, caption="": forest(board_of(NAMES[:2]), "detection_rate", caption, width),
    "pareto": lambda width, caption="": pareto(board_of(NAMES), costs_of(NAMES), caption=caption, width=width),
    "curves": lambda width, caption="": threshold_curves(SCORES, 0.2, caption, width),
    "seeds": lambda width, caption="": seed_strips(values_of(GRIDS), "detection_rate", caption, width),
    "outcomes": lambda width, caption="": outcome_bars(values_of(GRIDS), caption, width),
    "sweep": lambda width, caption="": sweep(SWEPT, "beta", "beta", caption=caption, width=width),
}


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def lines_of(figure: Figure) -> list[list[list[float]]]:
    return [np.round(line.get_xydata(), 9).tolist() for line in figure.axes[0].lines]


@pytest.mark.parametrize("width", [WIDTH, NARROW])
@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_clipped_nor_anyones_settings_changed(name, width):
    before = dict(mpl.rcParams)
    figure = DRAWN[name](width, "Emoji world, 40 prompts x 8 seeds, " + "a long caption " * 12)
    assert dict(mpl.rcParams) == before
    figure.draw_without_rendering()
    inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert figure.get_size_inches()[0] == width
    assert inside.x0 >= -1
    assert inside.y0 >= -1
    assert inside.x1 <= figure.bbox.x1 + 1
    assert inside.y1 <= figure.bbox.y1 + 1
    assert min(figure.axes[0].get_window_extent().size) > 20


@pytest.mark.parametrize("name", DRAWN)
def test_a_width_that_is_neither_a_pages_nor_a_columns_is_an_error(name):
    with pytest.raises(ValueError, match=r"width must be 6.75 \(a page\) or 3.25 \(a column\), got 5.0"):
        DRAWN[name](5.0)


def test_a_forest_has_a_row_per_method_with_its_difference_and_fills_what_is_significant():
    figure = forest(board_of(NAMES[:4]), "detection_rate")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES[1:4]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert lines_of(figure)[1:] == [
        [[10, 0], [30, 0]], [[20, 0]], [[9, 1], [29, 1]], [[19, 1]], [[-30, 2], [-10, 2]], [[-20, 2]],
    ]  # fmt: skip
    assert [to_hex(axes.lines[i].get_markerfacecolor()) for i in (2, 4, 6)] == [INK, "#ffffff", INK]
    assert texts_of(figure) == [
        "+20.0 [+10.0, +30.0]", "+19.0 [+9.0, +29.0]", f"{MINUS}20.0 [{MINUS}30.0, {MINUS}10.0]", "difference [95 %]",
        "< 0.001", "0.250", "< 0.001", "p (Holm)",
    ]  # fmt: skip
    assert axes.get_xlabel() == "difference to plain's detection rate (50.0 %), points"


def test_a_forest_of_a_score_is_in_its_own_units():
    figure = forest(board_of(NAMES[:2], "clip_cos"), "clip_cos")
    assert texts_of(figure)[0] == "+0.200 [+0.100, +0.300]"
    assert figure.axes[0].get_xlabel() == "difference to plain's CLIP score (0.500)"


def test_the_columns_of_a_forest_do_not_touch():
    figure = forest(board_of(NAMES), "detection_rate")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_a_forest_needs_differences_under_one_protocol():
    board = board_of(NAMES[:3])
    with pytest.raises(ValueError, match="under one protocol, got 'lpips' under \\[\\]"):
        forest(board, "lpips")
    with pytest.raises(ValueError, match="compared with plain, got 'detection_rate'"):
        forest(board[board["method"] != "plain"], "detection_rate")
    two = pd.concat([board, board.assign(protocol="q")])
    with pytest.raises(ValueError, match=r"under \['p', 'q'\]"):
        forest(two, "detection_rate")


def test_costs_are_the_median_of_the_ratios_on_the_same_prompt():
    costs = pd.DataFrame({"method": ["plain"] * 3 + ["slow"] * 3, "prompt_id": list("abc") * 2})
    costs["seconds"] = [1.0, 10.0, 100.0, 3.0, 20.0, 700.0]
    found = relative_costs(costs)
    assert found.loc["plain"].tolist() == [1, 1, 1]
    assert found.loc["slow", "value"] == 3  # of 3, 2 and 7
    assert found.loc["slow", "value_low"] == 2
    assert found.loc["slow", "value_high"] == 7
    with pytest.raises(ValueError, match="seconds above 0 of plain for every prompt"):
        relative_costs(costs.iloc[1:])


def test_the_front_joins_what_nothing_else_beats_and_fills_it():
    names = ["plain", "regulation", "composable", "conform"]
    board = board_of(NAMES).set_index("method").loc[names].reset_index()
    costs = costs_of(NAMES)
    figure = pareto(board, costs[costs["method"].isin(names)])
    axes = figure.axes[0]
    assert np.allclose(lines_of(figure)[0], [[1, 50], [1.5, 50], [1.5, 70], [4.9, 70], [4.9, 72]])
    points = [line for line in axes.lines if line.get_marker() != "None"]
    assert np.allclose([line.get_xydata()[0] for line in points], [[1, 50], [1.5, 70], [2.2, 30], [4.9, 72]])
    assert [to_hex(line.get_markerfacecolor()) == "#ffffff" for line in points] == [False, False, True, False]


def test_a_method_without_costs_is_left_out_and_the_others_keep_their_look():
    costs = costs_of(NAMES)
    figure = pareto(board_of(NAMES), costs[costs["method"] != "regulation"], by="passes")
    assert sorted(texts_of(figure)) == sorted(set(NAMES) - {"regulation"})
    colours = {to_hex(line.get_color()) for line in figure.axes[0].lines if line.get_marker() == "^"}
    assert colours == {looks(NAMES, "plain")["regulation-paper"].colour}


@pytest.mark.parametrize("width", [WIDTH, NARROW])
@pytest.mark.parametrize("seed", range(3))
def test_no_name_covers_another_or_a_point_and_all_lie_inside(width, seed):
    board, costs = board_of(NAMES), costs_of(NAMES)
    rng = np.random.default_rng(seed)
    board["value"] = board["value_low"] = board["value_high"] = rng.uniform(0.5, 0.7, len(NAMES))
    costs["seconds"] *= np.where(costs["method"] == "plain", 1, rng.uniform(0.9, 1.1))
    figure = pareto(board, costs, width=width)
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    points = [axes.transData.transform(line.get_xydata()[0]) for line in axes.lines if line.get_marker() != "None"]
    assert not any(box.contains(*point) for box in boxes for point in points)
    panel = axes.get_window_extent()
    assert all(panel.x0 - 1 <= box.x0 and box.x1 <= panel.x1 + 1 for box in boxes)


def test_no_two_of_66_methods_look_the_same_and_the_baseline_is_black():
    names = [f"method {i}" for i in range(66)]
    found = looks(["plain", *names], "plain")
    assert len({(look.colour, look.marker) for look in found.values()}) == 67
    assert found["plain"].colour == "#000000"
    assert looks([*names, "plain"], "plain")["method 3"] == found["method 3"]


def test_a_curve_counts_images_whose_every_score_is_above_the_threshold():
    figure = threshold_curves(SCORES, 0.2)
    curves = {line.get_label().split()[0]: line for line in figure.axes[0].lines[1:]}
    grid = curves["plain"].get_xdata()
    assert grid[-1] == pytest.approx(1.05 * 0.5)  # beyond the highest score of an image there is nothing to see
    for method, least in (("plain", [0.15, 0.3]), ("regulation", [0.5, 0.3])):
        expected = [50 * sum(score > t for score in least) for t in grid]
        assert curves[method].get_ydata().tolist() == expected
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["regulation  100.0", "plain  50.0"]
    assert figure.axes[0].lines[0].get_xdata() == [0.2, 0.2]


def test_a_missing_score_or_image_is_an_error():
    with pytest.raises(ValueError, match="whole"):
        threshold_curves(SCORES.assign(score=[np.nan, *SCORES["score"][1:]]), 0.2)
    with pytest.raises(ValueError, match="same prompts and seeds"):
        threshold_curves(SCORES.iloc[2:], 0.2)


def test_a_strip_has_a_dot_per_seed_and_a_band_of_what_chance_alone_would_do():
    figure = seed_strips(values_of(GRIDS), "detection_rate", methods=NAMES)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["plain", "regulation", "composable"]
    band, _, dots = lines_of(figure)[3:6]
    assert dots == [[100, 1], [50, 1], [100, 1]]
    # the prompts' variances over seeds are 0 and 1/3; two prompts; of three seeds each is a third of the mean
    reach = 196 * np.sqrt((1 - 1 / 3) * (0 + 1 / 3) / 2 / 2)
    assert np.allclose(band, [[500 / 6 - reach, 1], [500 / 6 + reach, 1]])
    assert texts_of(figure)[:4] == ["50.0", "83.3", "33.3", "mean"]
    assert texts_of(figure)[5] == "50.0, 100.0"


@pytest.mark.parametrize("seeds", [2, 5])
def test_95_of_100_dots_lie_in_the_band_if_seeds_are_shuffled_within_each_prompt(seeds):
    rng = np.random.default_rng(0)
    matrix = rng.normal(0.5, 0.1, (60, 1)) + rng.normal(0, 0.05, (60, seeds))  # prompts differ, seeds do not
    band = seed_strips(values_of({"plain": matrix.tolist()}), "detection_rate").axes[0].lines[0].get_xdata()
    means = np.array([rng.permuted(matrix, axis=1).mean(0) for _ in range(4000)]) * 100
    assert ((band[0] < means) & (means < band[1])).mean() == pytest.approx(0.95, abs=0.012)


def test_strips_need_the_same_seeds_for_all_prompts():
    values = values_of(GRIDS)
    with pytest.raises(ValueError, match="same seeds, at least 2"):
        seed_strips(values[(values["prompt_id"] == "p0") | (values["seed"] > 0)], "detection_rate")


def test_bars_count_what_was_lost_and_won_and_begin_with_the_baselines_rate():
    figure = outcome_bars(values_of(GRIDS), methods=["plain", "composable", "regulation"])
    axes = figure.axes[0]
    bars = np.reshape([(bar.get_x(), bar.get_width()) for bar in axes.patches], (2, 4, 2))
    widths = {"composable": [1, 2, 0, 3], "regulation": [1, 2, 3, 0]}  # lost, both found, won, both fail
    assert [label.get_text() for label in axes.get_yticklabels()] == list(widths)
    assert np.allclose(bars[:, :, 1] * 6 / 100, list(widths.values()))
    assert np.allclose(bars[:, 2, 0], 50)
    assert np.allclose(axes.lines[0].get_xdata(), 50)
    assert texts_of(figure) == ["1", "2", "3", "1", "2", "3"]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in axes.patches[:4]}) == 4


def test_bars_need_the_baseline_and_another():
    with pytest.raises(ValueError, match=r"of plain and of another method, got \['regulation'\]"):
        outcome_bars(values_of({"regulation": GRIDS["regulation"]}))


def test_a_sweep_over_orders_of_magnitude_has_a_logarithmic_axis_with_its_values_marked():
    table = pd.concat([SWEPT, SWEPT[:2].assign(beta=[0.0, 10.0])])
    axes = sweep(table, "beta", "beta").axes[0]
    assert axes.get_xscale() == "symlog"
    assert axes.get_xticks().tolist() == [0.0, 0.1, 1.0, 10.0]
    assert sweep(SWEPT, "beta", "beta").axes[0].get_xscale() == "linear"


def test_a_sweep_runs_along_the_parameter_and_a_baseline_without_it_is_a_band_across():
    figure = sweep(SWEPT, "beta", "edit strength", default=0.1)
    axes = figure.axes[0]
    curve, plain, default = axes.lines
    assert curve.get_xydata().tolist() == [[0.1, 60], [1.0, 80]]
    assert plain.get_xydata().tolist() == [[0.1, 50], [1.0, 50]]
    assert default.get_xdata() == [0.1, 0.1]
    whiskers, band = axes.collections
    assert np.allclose(whiskers.get_segments(), [[[0.1, 50], [0.1, 70]], [[1.0, 70], [1.0, 90]]])
    assert {tuple(corner) for corner in np.round(band.get_paths()[0].vertices, 6)} == {
        (0.1, 40), (0.1, 70), (1.0, 40), (1.0, 70),
    }  # fmt: skip
    with pytest.raises(ValueError, match="method other than plain"):
        sweep(SWEPT[SWEPT["method"] == "plain"], "beta", "beta")
    with pytest.raises(ValueError, match="other than plain with beta"):
        sweep(SWEPT.assign(beta=np.nan), "beta", "beta")


def test_a_baseline_that_was_swept_too_is_drawn_point_by_point():
    table = pd.concat([SWEPT.iloc[:2], SWEPT.iloc[:2].assign(method="plain", value=[0.3, 0.2])])
    plain = sweep(table, "beta", "guidance scale").axes[0].lines[1]
    assert plain.get_xydata().tolist() == [[0.1, 20], [1.0, 30]]


def test_a_word_that_fits_into_a_line_is_not_broken_at_its_hyphen():
    text = "Emoji world, 40 prompts x 8 seeds, emoji-owlv2#12ab34cd@0.26,argmax."
    for width in np.arange(2.0, WIDTH, 0.05):
        assert wrapped(text, width).replace("\n", " ") == text, width
        assert max(map(len, wrapped(text, width).split("\n"))) <= 72 * width / (0.56 * 7)


def test_a_word_longer_than_a_line_is_broken_at_its_hyphen():
    assert wrapped("attend-and-excite-fixed", 0.9, 7.5) == "attend-and-\nexcite-fixed"
    assert wrapped("a" * 20, 0.9, 7.5) == "a" * 15 + "\n" + "a" * 5


def test_a_dollar_in_a_name_is_a_dollar():
    board = board_of(NAMES[:2]).replace("regulation", "a $5$ bill")
    figure = forest(board, "detection_rate")
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text() == "a $5$ bill"
    assert not label.get_parse_math()
