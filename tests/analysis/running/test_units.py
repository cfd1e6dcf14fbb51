"""Units: known by all that makes their images, shared where cells ask for the same, named as files can be."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import PROMPTS, changed

from analysis.prompts.files import PromptSet
from analysis.running.units import LONGEST_NAME, file_name, planned, spread
from regulate import METHODS, AttentionRegulation
from regulate.applied import standings_of
from regulate.controls import Boost
from regulate.method import Subject
from tracer.capture import Capture
from tracer.prompts import Prompt

MODEL = ("a model", "its weights")


@pytest.fixture
def plan(small, tiny_pipe):
    def made(**facts):
        experiment = changed(small, **facts)
        prompts = PromptSet("pairs", "Pairs", experiment.parts[0].prompts)
        return planned(experiment.parts[0], prompts, tiny_pipe, MODEL)

    return made


def keys(one) -> set[str]:
    return set(one.units)


def test_a_job_is_a_prompts_batches_with_plain_first(plan):
    jobs = plan(batch=1).jobs
    assert [[unit.name for unit in job] for job in jobs] == [["plain", "plain", "regulation", "regulation"]] * 3
    assert [job[0].prompt for job in jobs] == list(PROMPTS)
    assert [unit.seeds for unit in jobs[0]] == [(0,), (1,), (0,), (1,)]


def test_cells_that_ask_for_the_same_images_share_a_unit(plan):
    one = plan(methods={"a": METHODS["regulation"], "again": METHODS["regulation"], "idle": METHODS["syngen-fixed"]})
    by_method = {cell.method: cell.units for cell in one.cells if cell.prompt == PROMPTS[0]}
    assert by_method["again"] == by_method["a"]
    assert by_method["idle"] == by_method["plain"]
    assert {unit.name for unit in one.units.values()} == {"plain", "a"}


@pytest.mark.parametrize(
    "facts",
    [
        {"steps": 3},
        {"guidance": 6.0},
        {"seeds": (0, 2)},
        {"methods": {"regulation": AttentionRegulation(iterations=3)}},
        {"prompts": (replace(PROMPTS[0], targets=("cat",)), *PROMPTS[1:])},
        {"prompts": (replace(PROMPTS[0], text="a cat with a dog"), *PROMPTS[1:])},
        {"traced": {"regulation": Capture()}},
        {"batch": 1},
    ],
)
def test_what_changes_the_images_or_the_trace_changes_the_key(plan, facts):
    assert keys(plan(**facts)) != keys(plan())


def test_prompts_are_spread_from_the_first_to_the_last():
    prompts = list(PROMPTS) * 10
    assert spread(prompts, None) is prompts
    assert spread(prompts, 99) is prompts
    assert spread(prompts[:7], 3) == [prompts[0], prompts[3], prompts[6]]
    assert spread(prompts, 1) == prompts[:1]


def test_what_changes_neither_leaves_it(plan):
    assert keys(plan(title="Other pairs", spread=3)) == keys(plan())
    assert keys(plan(methods={"other": AttentionRegulation(iterations=2)})) == keys(plan())


@given(st.text(), st.text())
def test_names_of_files_are_safe_and_tell_texts_apart(one, other):
    name = file_name(one)
    assert name
    assert "/" not in name
    assert "\\" not in name
    assert name.strip(" .") == name
    assert len(name.encode()) <= LONGEST_NAME + 9
    assert (file_name(other) == name) == (one == other)


def test_a_name_that_people_can_read_stays_it():
    assert file_name("a cat and a red car") == "a cat and a red car"
    assert file_name("attend-and-excite") == "attend-and-excite"
    assert "/" not in file_name("../secret")


def test_a_prompt_without_a_target_leaves_methods_nothing_to_do_that_act_on_targets(plan):
    bare = Prompt("bare", "it is raining again", (), "test")
    named = ("attend-and-excite", "predicated", "regulation")
    one = plan(methods={name: METHODS[name] for name in named} | {"boost": Boost()}, prompts=(PROMPTS[0], bare))
    verdicts = {(cell.method, cell.prompt.id): cell.standing.verdict for cell in one.cells}
    assert {verdicts[name, "pair-0"] for name in (*named, "boost")} == {"acts"}
    assert {verdicts[name, "bare"] for name in (*named, "boost")} == {"no-op"}
    with pytest.raises(ValueError, match="needs at least one target"):  # but to ask for it alone is a mistake
        standings_of(METHODS["regulation"], (Subject((), 6, 0, bare.text),))


def test_prompts_may_have_seeds_of_their_own_by_their_place_in_the_whole_set(plan):
    one = plan(own_seeds=True, seeds=(0, 2))
    assert [unit.seeds for unit in one.units.values() if unit.name == "plain"] == [(0, 2), (3, 5), (6, 8)]
    fewer = plan(own_seeds=True, seeds=(0, 2), spread=2)
    assert keys(fewer) < keys(one)
    assert [unit.seeds for unit in fewer.units.values() if unit.name == "plain"] == [(0, 2), (6, 8)]


def test_a_target_that_is_not_in_its_prompt_is_refused(plan):
    with pytest.raises(ValueError, match="glases"):
        plan(prompts=(Prompt("x", "a cat with glasses", ("cat", "glases"), "test"),))
