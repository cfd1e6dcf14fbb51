"""The page of a small run as `publish` writes it: it fits into the window, nothing is cut off, its filter works."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_runs

from analysis.outputs.publish import publish
from analysis.running.run import RunResults

SHOWN = ("method-table", "forest", "outcomes", "grid", "violins", "curves")
FIGURES = ("differences-clip_cos", "differences-detection_rate", "grid", "grid-boxes", "outcomes", "violins")
IMAGES = "[...document.querySelectorAll('.plate img')]"
# What of the first match lies outside of the second, in pixels: at the left, top, right and bottom.
BEYOND = """((inner, outer) => ["left", "top", "right", "bottom"].map((side, place) =>
    (place < 2 ? 1 : -1) * (outer.getBoundingClientRect()[side] - inner.getBoundingClientRect()[side])))"""


@pytest.fixture(scope="module")
def results(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    kept = dict.fromkeys(("plain", "regulation"), replace(small_runs.KEPT, steps=(0, 1)))
    experiment = small_runs.changed(small_runs.small(tiny_model), traced=kept)
    return small_runs.Quiet()(replace(experiment, shows=SHOWN), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(results: RunResults) -> Path:
    return publish(results)


@pytest.fixture(scope="module")
def opened(tab, page: Path):
    tab.window(1280, 900)
    tab.open(page)
    tab.open(page)  # again: what another test's page says when it is left is not this one's
    tab.until(f"{IMAGES}.every((image) => image.complete)")
    return tab


def visible(tab) -> list[str]:
    return tab.run("[...document.querySelectorAll('.row:not([hidden]) h3')].map((head) => head.firstChild.textContent)")


def test_it_opens_without_a_complaint_and_has_all_that_was_asked_for(opened):
    assert opened.complaints() == []
    assert opened.run("document.querySelectorAll('.paper-table').length") == 1
    assert opened.run(f"{IMAGES}.length") == len(FIGURES)
    assert "not drawn: curves: " in opened.of("#warnings", "textContent")
    assert "in detection rate" in opened.of("header ul", "textContent").lower()


def test_nothing_is_wider_than_the_window_and_every_figure_and_table_lies_inside_its_frame(opened):
    for width in (400, 1280):
        opened.window(width, 900)
        assert opened.run("document.documentElement.scrollWidth") == width
        assert opened.run("document.body.scrollWidth <= document.body.clientWidth")
        beyond = opened.run(f"{IMAGES}.map((image) => Math.max(...{BEYOND}(image, image.parentElement)))")
        assert max(beyond) <= 0
        assert opened.run(f"{IMAGES}.every((image) => image.height > 60)")
    # in a narrow window a table scrolls in its frame
    assert opened.run("[...document.querySelectorAll('.wide')].every((box) => box.scrollWidth <= box.clientWidth)")


def test_the_filter_shows_the_rows_that_have_an_outcome_and_those_with_a_word(opened, results: RunResults):
    values = results.parts[0].values
    rates = values[values["metric"] == "detection_rate"].pivot_table("value", ["prompt", "seed"], "method") > 0.5
    known = {
        "won": rates["regulation"] & ~rates["plain"],
        "lost": ~rates["regulation"] & rates["plain"],
        "both found": rates["regulation"] & rates["plain"],
        "both fail": ~rates["regulation"] & ~rates["plain"],
    }
    for outcome, rows in known.items():
        opened.click(f"input[value='{outcome}'] + .face")
        assert sorted(visible(opened)) == [prompt for prompt, _ in rows[rows].index]
    opened.click("button[type=reset]")
    opened.click("#search")
    opened.write("lion")
    assert visible(opened) == ["a lion and a bowl"] * 2
    opened.click("button[type=reset]")


def test_figures_and_images_are_seen(opened):
    opened.place(".row")  # its images are built when it comes near
    for selector in (".row .shot", ".plate"):
        left, top, width, height = (round(side) for side in opened.place(selector))
        shot = opened.picture()[max(top, 0) : top + height, left : left + width]
        assert shot.size > 10_000
        assert np.unique(shot.reshape(-1, 3), axis=0).shape[0] > 30
        assert (shot.astype(int).sum(2) < 700).mean() > 0.02  # not white all over


def test_no_text_of_a_figure_ends_outside_of_it(tab, page: Path):  # the last one: the page is left
    for name in FIGURES:
        tab.open(page.parent / "figures" / f"{name}.svg")
        beyond = tab.run(
            "[...document.querySelectorAll('text')].map((text) => "
            f"[Math.max(...{BEYOND}(text, document.documentElement)), text.textContent])"
        )
        assert beyond, name
        assert max(beyond)[0] < 1, (name, max(beyond)[1])
