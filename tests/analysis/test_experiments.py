"""The experiments that ship: whole, of one world each, and such that every method can be planned."""

import pickle
from dataclasses import replace

import pytest

from analysis.experiments.catalogue import EXPERIMENTS, experiment
from analysis.experiments.experiment import Experiment, Part
from analysis.running.planning import prompts_of
from analysis.running.units import planned
from regulate import METHODS, Method
from tracer.capture import Capture
from tracer.hub import known_models
from tracer.models import load_pipeline

EMOJI = [one for one in EXPERIMENTS.values() if one.world == "emoji"]
REAL = [one for one in EXPERIMENTS.values() if one.world == "real"]


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.mark.parametrize("one", EMOJI, ids=lambda one: one.name)
def test_every_emoji_experiment_can_be_planned_on_the_emoji_world(one, pipe, tmp_path):
    for part in one.parts:
        assert part.model == "emoji"
        short = replace(part, spread=2)
        plan = planned(short, prompts_of(short, tmp_path), pipe, ("emoji", "weights"))
        assert not plan.lacking or set(plan.lacking) <= {"dense-diffusion"}
        assert pickle.loads(pickle.dumps(plan.jobs)) == plan.jobs


@pytest.mark.parametrize("one", REAL, ids=lambda one: one.name)
def test_every_experiment_of_the_paper_is_on_models_that_have_a_name(one):
    for part in one.parts:
        assert part.model in known_models()
        assert (part.steps, part.guidance) == (50, 7.5)


def test_the_papers_experiments_have_their_counterparts():
    names = set(EXPERIMENTS)
    assert {f"emoji-{name}" for name in names if not name.startswith("emoji-")} - names <= {
        "emoji-table3",  # there is one emoji model
    }  # fmt: skip


def test_a_file_of_the_users_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"A&E needs .*a.e_prompts.txt; --data says in which folder"):
        prompts_of(experiment("table1").parts[1], tmp_path)


def test_an_unknown_experiment_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"must be one of emoji-table1, .*, got 'tabel1'"):
        experiment("tabel1")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"dtype": "half"}, "dtype must be one of float32, float16, bfloat16, got 'half'"),
        ({"name": "A&E"}, "a part's name must be small letters"),
        ({"seeds": ()}, "seeds must be at least one"),
        ({"seeds": (1, 1)}, "seeds must be at least one, all different"),
        ({"batch": 0}, "batch, steps and spread must be at least 1, got 0"),
        ({"methods": {"plain": METHODS["regulation"]}}, "the method named 'plain' must be stock diffusers"),
        ({"traced": {"regulation": Capture()}}, "traced must be some of plain, got regulation"),
    ],
)
def test_a_part_that_cannot_be_run_is_refused(facts, said):
    with pytest.raises(ValueError, match=said):
        Part(**({"name": "a", "title": "A", "prompts": "x", "methods": {}, "seeds": (0,)} | facts))


def test_plain_comes_first_and_parts_have_names_of_their_own():
    part = Part("a", "A", "x", {"regulation": METHODS["regulation"], "plain": Method()}, (0,))
    assert list(part.methods) == ["plain", "regulation"]
    with pytest.raises(ValueError, match=r"parts must be at least one, with names of their own, got \['a', 'a'\]"):
        Experiment("e", "?", (part, part), ())
