"""What a run shows where something is missing: all that can be made, and the names of the rest with the reasons."""

from dataclasses import replace
from io import StringIO

import pytest
import small_runs
from rich.console import Console

from analysis.outputs import pictures
from analysis.outputs.made import MadeFigure
from analysis.outputs.publish import SHOWS, publish
from analysis.running import worker

LOST = {("plain", small_runs.PROMPTS[0].text), ("regulation", small_runs.PROMPTS[1].text)}
NEED_ALL = {"outcomes", "thresholds", "seeds"}
NOT_THERE = {"set-table", "pareto", "curves"}  # nothing of that kind in this run, gaps or not
MAY_NOT = {"dose", "prediction", "heads", "pointing"}  # no strengths; no image that shows all; no box


def shown(results, *names):
    return replace(results, experiment=replace(results.experiment, shows=names))


@pytest.fixture(scope="module")
def gappy(tiny_model, tmp_path_factory):
    """A run in which plain failed at one prompt and regulation at another; one is left to compare them."""
    original = worker.generate

    def failing(pipe, request, method, *more):
        if (method.name, request.prompt) in LOST:
            raise RuntimeError("not today")
        return original(pipe, request, method, *more)

    kept = dict.fromkeys(("plain", "regulation"), small_runs.KEPT)
    experiment = small_runs.changed(small_runs.small(tiny_model), traced=kept, steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "generate", failing)
        how = replace(small_runs.HERE, allow_missing=True)
        results = small_runs.Quiet()(experiment, tmp_path_factory.mktemp("runs"), how)
    assert len(results.failed) == 3  # plain's images twice: traced, and for a method that has nothing to do
    return results


@pytest.mark.parametrize("name", sorted(SHOWS))
def test_of_a_run_with_missing_cells_all_that_can_be_is_shown_and_the_rest_is_named(gappy, name, monkeypatch):
    monkeypatch.setattr("analysis.outputs.dominance.SCENES", 2)
    console = Console(file=StringIO(), width=200)
    text = publish(shown(gappy, name), console).read_text()
    lost = f"not drawn: {name}: "
    assert (lost in text) == (lost in console.file.getvalue())
    assert name in MAY_NOT or (lost in text) == (name in NEED_ALL | NOT_THERE)
    assert (f"{lost}Pairs: images or scores are missing" in text) == (name in NEED_ALL)
    assert name in MAY_NOT or (f"{lost}the run has nothing of that kind" in text) == (name in NOT_THERE)
    drawn = text.count('<figure class="plate">') + text.count('<table class="paper-table')
    assert bool(drawn) == (lost not in text)


def test_pairs_and_maps_are_of_prompts_and_seeds_that_both_methods_have(gappy, monkeypatch):
    asked, original = [], pictures._pictures

    def noted(run, part, keys):
        asked.append(list(keys))
        return original(run, part, keys)

    monkeypatch.setattr(pictures, "_pictures", noted)
    (_,) = SHOWS["maps"](gappy)
    assert asked.pop() == [(method, small_runs.PROMPTS[2].text, 0) for method in ("plain", "regulation")]
    assert len(list(SHOWS["pairs"](gappy))) == 2
    there = [{key[1:] for key in keys if key[0] == "plain"} for keys in asked]
    second, third = ({(prompt.text, seed) for seed in (0, 1)} for prompt in small_runs.PROMPTS[1:])
    assert there == [third, second | third]  # regulation; syngen, which has nothing to do and fails where plain does
    assert all({key[1:] for key in keys if key[0] != "plain"} == both for keys, both in zip(asked, there, strict=True))


def test_methods_without_an_image_in_common_are_named(gappy):
    (part,) = gappy.parts
    images = part.images[
        (part.images["method"] != "regulation") | (part.images["prompt"] == small_runs.PROMPTS[0].text)
    ]
    page = publish(shown(replace(gappy, parts=(replace(part, images=images),)), "pairs")).read_text()
    assert "not drawn: pairs: Pairs, plain and regulation: they have no prompt and seed in common" in page
    assert page.count('<figure class="plate">') == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("too\nfew"), "too few"),
        (LookupError("none"), "none"),
        (KeyError("plain"), "KeyError &#39;plain&#39;"),
    ],
)
def test_what_the_data_do_not_allow_is_named_and_all_else_is_there(results, monkeypatch, error, said):
    def broken(_):
        yield from SHOWS["outcomes"](results)
        raise error

    monkeypatch.setitem(SHOWS, "maps", broken)
    page = publish(shown(results, "maps", "method-table")).read_text()
    assert f"not drawn: maps: {said}</span>" in page
    assert page.count('<figure class="plate">') == 1
    assert '<table class="paper-table' in page


def test_a_figure_that_cannot_be_drawn_is_named_and_the_next_one_is_there(results, monkeypatch):
    (good,) = SHOWS["outcomes"](results)

    def refuse():
        raise ValueError("nothing to draw")

    bad = MadeFigure("bad", "A bad one", "See.", "See.", refuse)
    monkeypatch.setitem(SHOWS, "maps", lambda _: iter((bad, good)))
    page = publish(shown(results, "maps")).read_text()
    assert "not drawn: maps: A bad one: nothing to draw" in page
    assert page.count('<figure class="plate">') == 1


@pytest.mark.parametrize("error", [TypeError("of the program"), AttributeError("of the program")])
def test_a_fault_of_the_program_is_raised(results, monkeypatch, error):
    def broken(_):
        raise error
        yield

    monkeypatch.setitem(SHOWS, "maps", broken)
    with pytest.raises(type(error), match="of the program"):
        publish(shown(results, "maps", "method-table"))


def test_something_to_show_that_there_is_not_is_refused(results):
    with pytest.raises(ValueError, match=r"shows must be some of method-table, .*, got violin"):
        publish(shown(results, "method-table", "violin"))
