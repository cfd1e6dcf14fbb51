"""The experiments that ship: whole, of one world each, and such that every method can be planned."""

import json
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from analysis.experiments.catalogue import EXPERIMENTS, experiment
from analysis.experiments.experiment import Experiment, Part
from analysis.running.missing import missing_cells
from analysis.running.planning import prompts_of
from analysis.running.units import fitting, planned
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


@pytest.fixture
def data(tmp_path):
    """Small files of the forms that the paper's tables are read from."""
    lists = {"animals": ["a cat and a dog"], "animals_objects": ["a cat with a red bowl"], "objects": []}
    (tmp_path / "a.e_prompts.txt").write_text(json.dumps(lists))
    entry = {"textual_condition": "a dog and a cat", "segment_descriptions": ["", "a dog", "a cat"]}
    (tmp_path / "testset.pkl").write_bytes(pickle.dumps({0: entry}))
    rows = [[(200, 0, 0)] * 2 + [(0, 200, 0)], [(255, 255, 255)] * 3, [(255, 255, 255)] * 3]
    Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / "0.png")
    with tarfile.open(tmp_path / "testset_layout.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "0.png", "0.png")
    captions = enumerate(["a cat on a red chair", "it is and it was", "two dogs"])
    files = [{"id": number, "file_name": f"{number}.jpg"} for number in range(3)]
    said = [{"id": number, "image_id": number, "caption": text} for number, text in captions]
    (tmp_path / "captions_val2014.json").write_text(json.dumps({"images": files, "annotations": said}))
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*spaCy")
@pytest.mark.parametrize("name", ["table1", "table2", "table3"])
def test_every_table_of_the_paper_can_be_planned_on_sets_of_others(name, pipe, data):
    for part in experiment(name).parts:
        part = replace(part, options={**part.options, "count": 3} if name == "table2" else part.options)
        plan = planned(part, prompts_of(part, data), pipe, ("m", "w"))
        absent = {method for method in plan.lacking if method not in fitting(plan)}
        assert (
            absent == set(plan.lacking) == ({"dense-diffusion"} if part.name != "coco" and name != "table2" else set())
        )
        assert not missing_cells(plan, plan.units)


def test_captions_without_a_noun_leave_methods_of_targets_nothing_to_do_and_each_has_its_own_noise(pipe, data):
    (part,) = experiment("table2").parts
    part = replace(part, options={**part.options, "count": 3})
    plan = planned(part, prompts_of(part, data), pipe, ("m", "w"))
    idle = {(cell.method, cell.prompt.text) for cell in plan.cells if cell.standing.verdict == "no-op"}
    assert {("attend-and-excite", "it is and it was"), ("regulation", "it is and it was")} <= idle
    assert ("regulation", "two dogs") not in idle
    assert [unit.seeds for unit in plan.units.values() if unit.name == "plain"] == [(0,), (1,), (2,)]


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
