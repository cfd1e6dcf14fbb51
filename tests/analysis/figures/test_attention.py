"""Figures: what is drawn is what the frame says, on the screenless backend, in 8 point type."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from analysis.figures.attention import NEGLECTED, attention_overlays, comparison_grid, dominance_violins

PICTURE = np.full((64, 64, 3), 200, np.uint8)
WORDS = ["a", "cat", "a", "dog"]


@pytest.fixture
def values() -> pd.DataFrame:
    """Two images, two steps, four words, two of them the same; of a word's 100 values the largest is known."""
    rng = np.random.default_rng(0)
    rows = [
        {"sample": s, "step": t, "word_idx": i, "word": w, "is_target": w != "a", "value": v * (i + 1) / 5}
        for s in (0, 3)
        for t in (0, 12)
        for i, w in enumerate(WORDS)
        for v in np.append(rng.random(99) * 0.9, 1.0)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def violins(values) -> Figure:
    missing = pd.DataFrame({"sample": [0], "word_idx": [3]})
    titles = {0: "seed 0: no dog", 3: "seed 3: all found"}
    return dominance_violins(values, missing, {0: PICTURE, 3: PICTURE}, titles, "layer x, not renormalised")


def drawn(figure: Figure) -> Figure:
    figure.savefig("/dev/null", format="png")
    return figure


def test_violins_have_a_row_per_image_and_a_column_per_step(violins):
    assert len(violins.axes) == 6
    assert [axes.get_title() for axes in violins.axes[:3]] == ["", "attention at step 0", "attention at step 12"]
    assert violins.axes[3].get_title(loc="left") == "seed 3: all found"
    assert len(violins.axes[0].images) == 1


def test_every_word_has_its_violin_in_prompt_order_even_a_repeated_one(violins):
    for axes in (*violins.axes[1:3], *violins.axes[4:]):
        assert [label.get_text() for label in axes.get_xticklabels()] == WORDS
        assert len([c for c in axes.collections if isinstance(c, PolyCollection)]) == 4


def test_the_bars_stand_at_the_smallest_middle_and_largest_value(violins, values):
    part = values[(values["sample"] == 3) & (values["step"] == 12)].groupby("word_idx")["value"]
    heights = [{round(s[0][1], 9) for s in c.get_segments()} for c in violins.axes[5].collections[4:]]
    for wanted in (part.min(), part.max(), part.median()):
        assert {round(v, 9) for v in wanted} in heights


def test_all_violins_share_the_scale_from_0_to_1_and_one_hue(violins):
    panels = (*violins.axes[1:3], *violins.axes[4:])
    assert {axes.get_ylim() for axes in panels} == {(0.0, 1.0)}
    bodies = [c for axes in panels for c in axes.collections if isinstance(c, PolyCollection)]
    assert len({tuple(body.get_facecolor()[0]) for body in bodies}) == 1


def test_targets_are_bold_and_only_the_missing_one_has_an_arrow(violins):
    weights = [label.get_fontweight() for label in violins.axes[1].get_xticklabels()]
    assert weights == ["normal", "bold", "normal", "bold"]
    arrows = [[text for text in axes.texts if text.arrow_patch] for axes in violins.axes]
    assert [len(of_axes) for of_axes in arrows] == [0, 1, 1, 0, 0, 0]
    assert arrows[1][0].xyann[0] == 4


def test_the_caption_stands_below(violins):
    assert violins.get_supxlabel() == "layer x, not renormalised"


def test_a_word_without_any_attention_is_drawn_too(values):
    values.loc[values["word_idx"] == 0, "value"] = 0.0
    figure = dominance_violins(values, pd.DataFrame({"sample": [], "word_idx": []}), {0: PICTURE}, {0: ""}, "")
    assert len(drawn(figure).axes) == 3


def test_a_violin_of_many_points_keeps_the_bars_of_all(values):
    many = pd.concat([values[values["sample"] == 0]] * 60)
    many.loc[many["word_idx"] == 1, "value"] = np.random.default_rng(1).random((many["word_idx"] == 1).sum())
    figure = dominance_violins(many, pd.DataFrame({"sample": [], "word_idx": []}), {0: PICTURE}, {0: ""}, "")
    largest = many.loc[(many["word_idx"] == 1) & (many["step"] == 0), "value"].max()
    assert any(largest == s[0][1] for c in figure.axes[1].collections[4:] for s in c.get_segments())


@pytest.fixture
def maps() -> pd.DataFrame:
    """Plain and regulated maps of two words; the edit ends after step 0."""
    phases = [("plain", "original", 0), ("plain", "original", 4), ("regulation", "original", 0)]
    phases += [("regulation", "original", 4), ("regulation", "edited", 0)]
    return pd.DataFrame(
        [
            {"method": m, "phase": p, "sample": 0, "step": t, "word_idx": i, "word": w, "h": 2, "w": 3}
            | {"map": [0.1 * (i + 1)] * 5 + [0.8 if p == "edited" else 0.2]}
            for m, p, t in phases
            for i, w in ((4, "dog"), (1, "cat"))
        ]
    )


@pytest.fixture
def overlays(maps) -> Figure:
    return attention_overlays(maps, {"plain": PICTURE, "regulation": PICTURE}, "two layers")


def test_overlays_have_a_row_per_method_phase_and_word_and_a_column_per_step(overlays):
    panels = np.reshape(overlays.axes[:18], (6, 3))
    assert [axes.get_title(loc="left") for axes in panels[:, 0]] == [
        "plain", "", "regulation", "", "regulation, as edited", "",
    ]  # fmt: skip
    assert [axes.get_ylabel() for axes in panels[:, 1]] == ["cat", "dog"] * 3
    assert [axes.get_title() for axes in panels[0]] == ["", "step 0", "step 4"]
    assert "not edited" in [text.get_text() for text in panels[5, 2].texts]
    assert np.allclose(panels[4, 1].images[1].get_array(), [[0.2, 0.2, 0.2], [0.2, 0.2, 0.8]])


def test_all_overlays_share_one_colour_scale_with_a_bar(overlays):
    panels = [axes for axes in overlays.axes[:18] if len(axes.images) == 2]
    assert {(axes.images[1].norm.vmin, axes.images[1].norm.vmax) for axes in panels} == {(0, 0.8)}
    assert len(overlays.axes) == 19
    assert overlays.axes[18].get_ylabel() == "attention probability,\nmean over heads and layers"


def test_the_overlays_colours_darken_steadily(overlays):
    colours = overlays.axes[1].images[1].get_cmap()(np.linspace(0, 1, 64))
    on_white = colours[:, :3] * colours[:, 3:] + (1 - colours[:, 3:])
    lightness = on_white @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) < 0).all()


@pytest.fixture
def detections() -> pd.DataFrame:
    """Three seeds; plain misses the dog of seed 1, regulation shows everything."""
    return pd.DataFrame(
        [
            {"method": m, "seed": s, "target": t, "score": 0.9, "found": not (m == "plain" and s == 1 and t == "dog")}
            | {"left": 1.0, "top": 2.0, "right": 11.0, "bottom": 22.0}
            for m in ("plain", "regulation")
            for s in range(3)
            for t in ("cat", "dog")
        ]
    )


@pytest.fixture
def grid(detections) -> Figure:
    outcomes = pd.DataFrame({"seed": range(3), "outcome": ["both found", "won", "both found"]})
    pictures = {(m, s): PICTURE for m in ("plain", "regulation") for s in range(3)}
    return comparison_grid(detections, outcomes, pictures, columns=2)


def test_the_grid_shows_both_methods_of_every_seed_with_the_outcome(grid):
    shown = [axes for axes in grid.axes if axes.images]
    assert len(shown) == 6
    titles = [axes.get_title() for axes in grid.axes if axes.get_title()]
    assert titles == ["seed 0\nboth found", "seed 1\nwon", "seed 2\nboth found"]
    assert [axes.get_ylabel() for axes in grid.axes if axes.get_ylabel()] == ["plain", "regulation"] * 2


def test_found_objects_have_boxes_and_scores_and_missing_ones_are_named_and_framed(grid):
    def texts(axes):
        return [text.get_text() for text in axes.texts]

    failed = grid.axes[1]  # seed 1, plain
    assert texts(failed) == ["cat 0.90", "no dog"]
    assert [tuple(box.get_bbox().extents) for box in failed.patches] == [(1, 2, 11, 22)]
    assert failed.spines["left"].get_visible()
    assert mpl.colors.to_hex(failed.spines["left"].get_edgecolor()) == NEGLECTED
    whole = grid.axes[0]
    assert texts(whole) == ["cat 0.90", "dog 0.90"]
    assert len(whole.patches) == 2
    assert not whole.spines["left"].get_visible()


def test_the_targets_have_a_colour_each_and_the_legend_says_which(grid):
    colours = [box.get_edgecolor() for box in grid.axes[0].patches]
    assert colours[0] != colours[1]
    (legend,) = grid.legends
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog", "frame: an object is missing"]
    assert [box.get_edgecolor() for box in legend.get_patches()[:2]] == colours


@pytest.mark.parametrize("name", ["violins", "overlays", "grid"])
def test_nothing_is_clipped_nor_anyones_settings_changed(name, request):
    before = dict(mpl.rcParams)
    figure = request.getfixturevalue(name)
    assert dict(mpl.rcParams) == before
    drawn(figure)
    page = figure.bbox
    inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 >= -1
    assert inside.y0 >= -1
    assert inside.x1 <= page.x1 + 1
    assert inside.y1 <= page.y1 + 1
    assert figure.get_size_inches()[0] == 6.75


def test_pictures_without_values_are_an_error(values, maps):
    nothing = pd.DataFrame({"sample": [], "word_idx": []})
    with pytest.raises(ValueError, match=r"got none for sample \[7\]"):
        dominance_violins(values, nothing, {7: PICTURE}, {7: ""}, "")
    with pytest.raises(ValueError, match=r"got none for method \['other'\]"):
        attention_overlays(maps, {"other": PICTURE}, "")
    with pytest.raises(ValueError, match="at least one image"):
        dominance_violins(values, nothing, {}, {}, "")
