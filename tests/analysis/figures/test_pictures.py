"""Figures of images: every image in its place, framed and named where the table says that something is missing."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.figures.pictures import maps_over_steps, method_grid, pairs
from analysis.figures.style import NEGLECTED, WIDTH

METHODS, PROMPTS = ("plain", "attend-and-excite-fixed"), ("a cat and a dog", "a $5 bill and a very long wooden bench")
TARGETS = {PROMPTS[0]: ("cat", "dog"), PROMPTS[1]: ("bill", "wooden bench")}
PICTURES = {
    (method, prompt, seed): np.full((32, 32, 3), 10 * i + 5 * j + seed, np.uint8)
    for i, method in enumerate(METHODS)
    for j, prompt in enumerate(PROMPTS)
    for seed in (3, 8)
}
FOUND = pd.DataFrame(
    [
        {"method": m, "prompt": p, "seed": s, "target": target, "left": 1, "top": 2, "right": 11, "bottom": 22}
        | {"found": not (m == "plain" and s == 3 and p == PROMPTS[1])}
        for m, p, s in PICTURES
        for target in TARGETS[p]
    ]
)
DRAWN = {
    "grid": lambda: method_grid(PICTURES, FOUND, "Emoji world. " + "a long caption " * 12),
    "pairs": lambda: pairs(PICTURES, FOUND, "Emoji world. " + "a long caption " * 12),
    "a pair": lambda: pairs({key: one for key, one in PICTURES.items() if key[1:] == (PROMPTS[0], 3)}, FOUND),
}


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def shades_of(figure: Figure) -> list[int]:
    return [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes]


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_clipped_nor_anyones_settings_changed(name):
    before = dict(mpl.rcParams)
    figure = DRAWN[name]()
    assert dict(mpl.rcParams) == before
    figure.draw_without_rendering()
    inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert figure.get_size_inches()[0] == WIDTH
    assert min(inside.x0, inside.y0) >= -1
    assert inside.x1 <= figure.bbox.x1 + 1
    assert inside.y1 <= figure.bbox.y1 + 1
    boxes = [axes.get_position() for axes in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_grid_has_a_row_per_method_and_a_column_per_prompt_and_seed():
    figure = method_grid(PICTURES, FOUND)
    places = [axes.get_position() for axes in figure.axes]
    order = np.lexsort(([box.x0 for box in places], [-round(box.y1, 6) for box in places]))
    assert [shades_of(figure)[i] for i in order] == [3, 8, 8, 13, 13, 18, 18, 23]
    assert texts_of(figure).count("seed 3") == 2
    assert "attend-and-\nexcite-fixed" in texts_of(figure)


def test_an_image_that_misses_targets_is_framed_and_they_are_named():
    figure = method_grid(PICTURES, FOUND)
    framed = [axes for axes in figure.axes if axes.spines["left"].get_visible()]
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in framed] == [8]
    assert to_hex(framed[0].spines["left"].get_edgecolor()) == NEGLECTED
    assert [text for text in texts_of(figure) if text.startswith("no ")] == ["no bill\nno wooden bench"]


def test_boxes_are_drawn_and_named_if_asked_for():
    assert not any(axes.patches for axes in method_grid(PICTURES, FOUND).axes)
    whole = method_grid(PICTURES, FOUND, boxes=True).axes[0]
    assert [tuple(box.get_bbox().extents) for box in whole.patches] == [(1, 2, 11, 22)] * 2
    assert [text.get_text() for text in whole.texts] == ["cat", "dog"]


def test_an_image_that_a_method_cannot_make_is_not_applicable():
    some = {key: one for key, one in PICTURES.items() if key != (METHODS[1], PROMPTS[0], 8)}
    figure = method_grid(some, FOUND)
    assert len(figure.axes) == 7
    assert texts_of(figure).count("n/a") == 1


def test_pairs_stand_side_by_side_the_first_method_at_the_left():
    figure = pairs(PICTURES, FOUND, columns=2)
    places = [axes.get_position() for axes in figure.axes]
    assert shades_of(figure) == [3, 13, 8, 18, 8, 18, 13, 23]
    for left, right in zip(places[::2], places[1::2], strict=True):
        assert left.x1 < right.x0
        assert left.y0 == pytest.approx(right.y0)
    assert places[0].y0 == pytest.approx(places[2].y0)
    assert places[2].y0 > places[4].y1
    assert next(text for text in texts_of(figure) if text.startswith("a ")) == "a cat and a dog"


def test_pairs_are_of_two_methods_with_the_same_images():
    with pytest.raises(ValueError, match=r"two methods, got \['plain'\]"):
        pairs({key: one for key, one in PICTURES.items() if key[0] == "plain"}, FOUND)
    with pytest.raises(ValueError, match="same prompts and seeds of two methods"):
        pairs(dict(list(PICTURES.items())[1:]), FOUND)


def test_an_image_of_which_the_table_says_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"got none for picture \[\('plain', 'a cat and a dog', 3\)\]"):
        method_grid(PICTURES, FOUND.iloc[2:])
    with pytest.raises(ValueError, match="at least one image"):
        method_grid({}, FOUND)


def test_maps_are_those_after_the_edit_where_a_method_edits_and_at_the_steps_asked_for():
    maps = pd.DataFrame(
        [
            {"method": m, "phase": p, "sample": 0, "step": t, "word_idx": 1, "word": "cat", "h": 2, "w": 2}
            | {"map": [0.1, 0.1, 0.1, 0.9 if p == "edited" else 0.5]}
            for m, p in (("plain", "original"), ("regulation", "original"), ("regulation", "edited"))
            for t in (0, 4, 8)
        ]
    )
    picture = np.full((8, 8, 3), 200, np.uint8)
    figure = maps_over_steps(maps, {"plain": picture, "regulation": picture}, (0, 8), "two layers")
    shown = [axes for axes in figure.axes if len(axes.images) == 2]
    assert [axes.get_title() for axes in shown[:2]] == ["step 0", "step 8"]
    assert [float(axes.images[1].get_array().max()) for axes in shown] == pytest.approx([0.5, 0.5, 0.9, 0.9])
    with pytest.raises(ValueError, match=r"got none for method \['plain'"):
        maps_over_steps(maps, {"plain": picture}, (5,))
