"""Ablations and searches: honest comparisons on the random model, of two steps an image."""

import sys
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from analysis.plan import animal_pairs, halves
from analysis.search import FINALISTS, ablate, search, search_and_test
from analysis.shards import read_shards
from analysis.spaces import REGULATION, SPACES, Range, space_of
from regulate import AttentionRegulation, Given, Method
from regulate.catalogue import CATALOGUE
from regulate.layout import layout_of_prompt

FEW = AttentionRegulation(iterations=2)
SMALL = {"step_size": Range(1.0, 100.0, log=True), "layers": {"8x8": "last-down-first-up", "all": "*"}}


@pytest.fixture
def known(tiny_model, tiny_protocol) -> dict[str, object]:
    return {"model": tiny_model, "protocol": tiny_protocol, "steps": 2, "console": Console(quiet=True)}


def test_an_ablation_changes_one_hyper_parameter_at_a_time(tmp_path, known):
    factors = {"step_size": (100.0, 25.0), "until": (0.5, 1.0)}
    lines = ablate(animal_pairs()[:1], (0, 1), factors, tmp_path, base=FEW, **known).table
    assert lines["method"].unique().tolist() == ["plain", "base", "step_size = 25.0", "until = 1.0"]
    rows = read_shards(tmp_path / "rows").drop_duplicates("method").set_index("method")["parameters"]
    assert rows["step_size = 25.0"] == rows["base"].replace('"step_size": 100.0', '"step_size": 25.0') != rows["base"]
    assert pd.read_csv(tmp_path / "ablation.csv")["method"].tolist() == lines["method"].tolist()


def test_a_search_gives_its_best_trials_all_seeds_and_returns_the_best(tmp_path, known):
    found = search(animal_pairs()[:2], range(4), tmp_path, space=SMALL, trials=5, base=FEW, **known)
    assert len(found.trials) == 5
    assert found.trials["step_size"].between(1, 100).all()
    assert set(found.trials["layers"]) <= {"8x8", "all"}
    every = found.finalists[found.finalists["pairs"] == "all"].set_index("method")
    best = found.trials.sort_values("difference", ascending=False, kind="stable")["trial"][:FINALISTS]
    assert set(every.index) == {"plain", *best}
    assert (every["images"] == 8).all()
    assert every.loc[found.name, "difference"] == every.loc[list(best), "difference"].max()
    mine = found.trials.set_index("trial").loc[found.name]
    assert found.method.step_size == mine["step_size"]
    assert found.method.layers == SMALL["layers"][mine["layers"]]
    assert found.method.iterations == 2


def test_a_search_that_was_stopped_goes_on_with_the_same_trials(tmp_path, known):
    first = search(animal_pairs()[:1], range(2), tmp_path, space=SMALL, trials=2, base=FEW, **known)
    done = set((tmp_path / "rows").iterdir())
    longer = search(animal_pairs()[:1], range(2), tmp_path, space=SMALL, trials=4, base=FEW, **known)
    assert done <= set((tmp_path / "rows").iterdir())
    pd.testing.assert_frame_equal(longer.trials[:2], first.trials)
    again = search(animal_pairs()[:1], range(2), tmp_path / "again", space=SMALL, trials=4, base=FEW, **known)
    pd.testing.assert_frame_equal(again.trials, longer.trials)


def test_what_was_found_is_tested_on_the_other_half_beside_the_published_set(tmp_path, known):
    pairs = animal_pairs()[:6]
    found, tested = search_and_test(pairs, range(2), tmp_path, trials=1, **known)
    assert set(tested.table["method"]) == {"plain", "published", "searched"}
    rows = read_shards(tmp_path / "rows")
    tune, test = ({prompt.text for prompt in half} for half in halves(pairs))
    assert set(rows.loc[rows["method"] == found.name, "prompt"]) == tune
    assert set(rows.loc[rows["method"] == "searched", "prompt"]) == test


def test_the_space_is_of_hyper_parameters_around_the_released_ones():
    base = AttentionRegulation()
    for name, choice in REGULATION.items():
        value = getattr(base, name)
        assert choice.low <= value <= choice.high if isinstance(choice, Range) else value in choice.values()


@pytest.mark.parametrize("name", SPACES)
def test_the_space_of_each_method_is_of_values_that_it_allows(name):
    method = CATALOGUE[name].method
    assert space_of(method) == SPACES[method.name]
    for field, choice in SPACES[name].items():
        assert hasattr(method, field), field
        for value in (choice.low, choice.high) if isinstance(choice, Range) else choice.values():
            assert getattr(replace(method, **{field: value}), field) == value


def test_a_method_without_a_space_is_searched_in_a_named_one_only():
    with pytest.raises(ValueError, match="space must be named for 'plain'; known are those of regulation, composable"):
        space_of(Method())


def test_another_method_than_regulation_is_searched_in_its_own_space(tmp_path, known):
    base = CATALOGUE["boost"].method
    found = search(animal_pairs()[:1], range(2), tmp_path, trials=1, base=base, **known)
    assert isinstance(found.method, type(base))
    assert set(found.trials.columns) == {"trial", "difference", "layers", "amount", "until"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"space": {"sigma": Range(1.0, 2.0)}}, "sigma is no hyper-parameter; those are quantile, level"),
        ({"seeds": (1,)}, "needs at least two seeds and one trial, got 1 and 24"),
        ({"trials": 0}, "needs at least two seeds and one trial, got 2 and 0"),
    ],
)
def test_searches_that_are_none_are_refused_and_nothing_is_written(tmp_path, known, given, message):
    given = {"prompts": animal_pairs()[:1], "seeds": (0, 1), "out": tmp_path / "out"} | given
    with pytest.raises(ValueError, match=message):
        search(**given, **known)
    assert not (tmp_path / "out").exists()


def test_one_prompt_cannot_be_halved(tmp_path, known):
    with pytest.raises(ValueError, match="enough for two halves, got 1"):
        search_and_test(animal_pairs()[:1], range(2), tmp_path / "out", **known)


def test_without_optuna_a_search_says_how_to_install_it(tmp_path, known, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'attnreg\[search\]'"):
        search(animal_pairs()[:1], (0, 1), tmp_path / "out", **known)
    assert not (tmp_path / "out").exists()


def test_a_method_that_needs_a_layout_is_searched_with_one_and_refused_without_before_anything_is_made(tmp_path, known):
    pairs, base = animal_pairs()[:1], CATALOGUE["dense-diffusion"].method
    with pytest.raises(ValueError, match="dense-diffusion cannot be searched: 'a cat and a dog': it has no layout"):
        search(pairs, range(2), tmp_path, trials=1, base=base, **known)
    assert not (tmp_path / "rows").exists()
    given = {pairs[0].text: Given(layout=layout_of_prompt(pairs[0].text, pairs[0].targets, 0))}
    found = search(pairs, range(2), tmp_path, trials=1, base=base, given=given, **known)
    assert isinstance(found.method, type(base))
