import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.folders import shipped
from tracer.prompts import TEMPLATES, Prompt, attend_and_excite_templates, load_prompts, save_prompts
from tracer.words import targets_of

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "attend-and-excite-prompts.json"
LINE = {"id": "one", "text": "a cat", "targets": ["cat"], "source": "me"}


def kind_of(prompt):
    return prompt.id.rpartition("-")[0]


def test_the_benchmark_has_its_three_kinds_of_prompt():
    kinds = [kind_of(prompt) for prompt in attend_and_excite_templates()]
    assert kinds == ["animals"] * 66 + ["animals_objects"] * 144 + ["objects"] * 66


def test_no_prompt_of_the_benchmark_comes_twice():
    prompts = attend_and_excite_templates()
    assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 276
    assert len({frozenset(prompt.targets) for prompt in prompts}) == 276


def test_the_templates_are_filled_with_their_articles_mended():
    texts = {prompt.text for prompt in attend_and_excite_templates()}
    assert {"a cat and an elephant", "an elephant and a monkey", "a cat with a bow"} <= texts
    assert not any(f" a {vowel}" in f" {text}" for text in texts for vowel in "aeiou")


def test_only_things_that_are_not_worn_have_a_colour():
    prompts = [p for p in attend_and_excite_templates() if kind_of(p) == "animals_objects"]
    worn = [prompt for prompt in prompts if " with " in prompt.text]
    assert len(worn) == 36
    assert {len(prompt.text.split()) for prompt in worn} == {5}
    assert {len(prompt.text.split()) for prompt in prompts if prompt not in worn} == {6}


def test_another_seed_draws_other_colours_for_the_same_things():
    ours, other = attend_and_excite_templates(), attend_and_excite_templates(seed=1)
    assert [prompt.targets for prompt in ours] == [prompt.targets for prompt in other]
    assert 102 <= sum(a.text == b.text for a, b in zip(ours, other, strict=True)) < 150


def test_the_committed_file_is_what_the_templates_give():
    assert load_prompts(TEMPLATES) == attend_and_excite_templates()
    assert load_prompts(shipped("prompts") / f"{TEMPLATES}.jsonl") == attend_and_excite_templates()


def test_every_target_is_one_token_where_the_benchmark_has_it(emoji_tokenizer):
    places = {"animals": {(2, 5)}, "animals_objects": {(2, 5), (2, 6)}, "objects": {(3, 7)}}
    for prompt in load_prompts(TEMPLATES):
        found = targets_of(emoji_tokenizer, prompt.text, prompt.targets)
        assert tuple(at for target in found for at in target.positions) in places[kind_of(prompt)]


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the benchmark's own list is not beside this checkout")
def test_what_the_template_settles_is_the_benchmark_word_for_word():
    official = json.loads(OFFICIAL.read_text())
    ours = {kind: {p.text for p in attend_and_excite_templates() if kind_of(p) == kind} for kind in official}
    assert {entry["prompt"] for entry in official["animals"]} == ours["animals"]
    worn = {entry["prompt"] for entry in official["animals_objects"] if " with " in entry["prompt"]}
    assert len(worn) == 36
    assert worn <= ours["animals_objects"]


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the benchmark's own list is not beside this checkout")
def test_but_for_the_colours_the_prompts_are_the_benchmark():
    def nouns(text):
        return tuple(phrase.split()[-1] for phrase in text.replace(" with ", " and ").split(" and "))

    official = json.loads(OFFICIAL.read_text())
    theirs = sorted(nouns(entry["prompt"]) for entries in official.values() for entry in entries)
    assert theirs == sorted(nouns(prompt.text) for prompt in attend_and_excite_templates())


@given(
    rows=st.lists(
        st.builds(Prompt, st.text(), st.text(), st.lists(st.text(), max_size=3).map(tuple), st.text()),
        max_size=5,
        unique_by=lambda prompt: prompt.id,
    )
)
def test_prompts_come_back_as_they_were_saved(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "some.jsonl"
    save_prompts(path, rows)
    assert load_prompts(path) == tuple(rows)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "some.jsonl, line 2: a line must be one JSON object"),
        ("[1]", "must have the fields id, source, targets, text"),
        (json.dumps({**LINE, "id": "two", "seed": 1}), "must have the fields id, source, targets, text"),
        (json.dumps({**LINE, "id": "two", "targets": "cat"}), "targets must be a list of strings"),
        (json.dumps({**LINE, "id": "two", "targets": [1]}), "targets must be a list of strings"),
        (json.dumps({**LINE, "id": 2}), "and the rest strings"),
        (json.dumps(LINE), "line 2: an id must be unique, got 'one' again"),
    ],
)
def test_a_line_that_is_no_prompt_is_refused_with_its_number(tmp_path, line, message):
    path = tmp_path / "some.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        load_prompts(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError):
        load_prompts("no-such-benchmark")
