"""What is shown of a run: files with the store's numbers, the same bytes every time, and a page with all of them."""

import csv
import hashlib
from dataclasses import replace

import pandas as pd
import pytest

from analysis.experiments.catalogue import EXPERIMENTS
from analysis.outputs.publish import SHOWS, publish
from analysis.paper.tables import method_table

NAMES_ITS_JUDGE = ("forest", "outcomes", "thresholds", "seeds", "dominance")
FILES = ("method-table", "forest", "outcomes")


def shown(results, *names):
    return replace(results, experiment=replace(results.experiment, shows=names))


def contents(run):
    files = [*run.glob("tables/*"), *run.glob("figures/*"), run / "index.html"]
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def published(results):
    publish(shown(results, *FILES))
    return results.run


def test_every_form_of_every_table_and_figure_is_there(published):
    names = {path.stem for path in published.glob("figures/*.pdf")}
    assert names == {"differences-detection_rate", "differences-clip_cos", "outcomes"}
    for name in names:
        assert all((published / f"figures/{name}.{form}").is_file() for form in ("pdf", "svg", "png"))
    assert all((published / f"tables/methods.{form}").is_file() for form in ("csv", "md", "html", "tex"))


def test_the_tables_numbers_are_the_boards(published, results):
    board = results.parts[0].board.set_index(["method", "metric"])
    with (published / "tables/methods.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["cell"] == "number" and row["metric"] in ("clip_cos",)]
    assert {row["method"] for row in rows} == {"plain", "regulation", "syngen"}
    for row in rows:
        assert float(row["value"]) == board.at[(row["method"], row["metric"]), "value"]


def test_publishing_again_changes_no_byte(published, results):
    before = contents(published)
    publish(shown(results, *FILES))
    assert contents(published) == before


def test_the_page_says_what_is_missing_and_what_did_nothing(published):
    text = (published / "index.html").read_text()
    assert "syngen has nothing to do on 4 of 4 prompts" in text
    assert "dense, &#39;a cat and a dog&#39;: it has no layout" in text
    assert "attnreg run small" in text
    assert "not the paper" in text
    assert ".paper-table caption" in text


@pytest.mark.parametrize(
    "name", sorted({*SHOWS} - {"method-table", "model-tables", "set-table", "dose", "prediction", "pointing", "curves"})
)
def test_every_figure_is_drawn(results, name, monkeypatch):
    monkeypatch.setattr("analysis.outputs.dominance.SCENES", 2)
    made = list(SHOWS[name](results))
    assert made or name == "pareto"  # the traced methods were not timed
    for one in made:
        figure = one.draw()
        assert figure.axes
        assert "Emoji world" in one.alternative
        metric = "clip_cos" if one.name.endswith("clip_cos") else "detection_rate"
        assert name not in NAMES_ITS_JUDGE or results.parts[0].protocol(metric) in one.alternative


def test_a_figures_numbers_lie_beside_it(results):
    publish(shown(results, "dominance"))
    numbers = pd.read_csv(results.run / "figures" / "dominance.csv")
    assert {"layer", "step", "group", "value", "value_low", "value_high", "images"} <= set(numbers)
    assert numbers["step"].unique().tolist() == [0, 1, 3]
    assert 'href="figures/dominance.csv"' in (results.run / "index.html").read_text()


def curves_of(results, names, kinds=None):
    """What is drawn along a constant, of results whose methods are renamed."""
    (one,) = results.parts
    known = one.planned.part.methods
    methods = {new: known[(kinds or {}).get(old, old)] for old, new in names.items()}
    planned = replace(one.planned, part=replace(one.planned.part, methods=methods, traced={}))
    frames = {kind: getattr(one, kind).replace({"method": names}) for kind in ("values", "images", "costs")}
    renamed = replace(one, planned=planned, methods=("plain", *names.values()), **frames)
    return {figure.name: figure for figure in SHOWS["curves"](replace(results, parts=(renamed,)))}


@pytest.mark.parametrize("ends", [("until 0.25", "layers"), ("until ²", "until 1"), ("until nan", "until 1")])
def test_names_that_do_not_end_in_numbers_make_no_curve(results, ends):
    assert not curves_of(results, dict(zip(("regulation", "syngen"), ends, strict=True)))


def test_two_constants_of_one_kind_of_method_make_no_curve(results):
    names = {"regulation": "until 0.25", "syngen": "beta 1.0"}
    assert curves_of(results, names)
    assert not curves_of(results, names, {"syngen": "regulation"})


def test_methods_whose_names_end_in_a_number_are_drawn_along_it(results):
    (one,) = results.parts
    made = curves_of(results, {"regulation": "until 0.25", "syngen": "until 0.5"})
    assert set(made) == {"curve-detection_rate", "curve-clip_cos"}
    figure = made["curve-clip_cos"].draw()
    assert figure.axes[0].get_xlabel() == "share of the steps that is edited"
    assert figure.axes[0].get_xticks().tolist() == [0.25, 0.5]
    numbers = made["curve-clip_cos"].numbers[""].set_index("method")
    board = one.board[one.board["metric"] == "clip_cos"].set_index("method")["value"]
    assert numbers.at["until 0.25", "value"] == board["regulation"]
    assert numbers.loc[["until 0.25", "until 0.5"], "at"].tolist() == [0.25, 0.5]


def test_the_table_of_methods_is_computed_once_for_all_that_takes_its_tests(results, monkeypatch):
    calls = []

    def counted(*given, **more):
        calls.append(given)
        return method_table(*given, **more)

    monkeypatch.setattr("analysis.outputs.method_results.method_table", counted)
    fresh = replace(results, parts=tuple(replace(part) for part in results.parts))
    publish(shown(fresh, "method-table", "forest"))
    assert len(calls) == 1


def test_of_too_many_images_the_page_shows_prompts_spread_over_the_set_and_says_so(results, monkeypatch):
    few = replace(results, run=results.run, experiment=replace(results.experiment, shows=()))
    monkeypatch.setattr("analysis.outputs.publish.LARGEST_GALLERY", 13)  # of 24
    text = publish(few).read_text()
    assert "the gallery shows 12 of 24 images: of prompts spread evenly over the sets" in text
    assert "Images of some prompts" in text
    assert "12 of 24 images" in text


def test_the_page_says_of_how_many_prompts_costs_are_left_out(results):
    parts = (replace(results.parts[0], untimed=3),)
    text = publish(replace(shown(results), parts=parts)).read_text()
    assert "costs of 3 of 4 prompts are left out for some methods, which were timed on another machine" in text


def test_every_experiment_shows_only_what_there_is():
    assert {name for experiment in EXPERIMENTS.values() for name in experiment.shows} <= set(SHOWS)
