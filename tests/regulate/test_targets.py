"""Targets that nobody named."""

import pytest

from regulate import AttentionRegulation, Method, Request, applied, generate
from tracer.capture import Capture
from tracer.store import Store


def test_auto_takes_the_nouns_and_gives_the_same_images_as_naming_them(tiny_pipe, tmp_path):
    named = generate(tiny_pipe, Request("a cat and a dog", ("cat", "dog"), (3,), steps=2), AttentionRegulation())
    with Store.create(tmp_path / "t.duckdb") as store:
        asked = Request("a cat and a dog", "auto", (3,), steps=2)
        auto = generate(tiny_pipe, asked, AttentionRegulation(), trace=store, capture=Capture(precision="none"))
        words = store.sql("SELECT word FROM tokens WHERE is_target AND branch = 'cond' ORDER BY token")
    assert auto.sha256 == named.sha256
    assert words["word"].tolist() == ["cat", "dog"]


def test_auto_is_for_each_prompt_or_for_all(tiny_pipe):
    prompts = ["a cat and a dog", "a bowl"]
    for targets in ("auto", ["auto", ["bowl"]], [["cat", "dog"], "auto"]):
        with applied(tiny_pipe, Method(), prompts, targets, seeds=(1, 2)) as run:
            found = [[target.text for target in subject.targets] for subject in run.subjects]
        assert found == [["cat", "dog"], ["bowl"]]


def test_a_word_where_a_list_is_meant_is_refused(tiny_pipe):
    with (
        pytest.raises(ValueError, match="targets must be a list of words or 'auto', got 'cat'"),
        applied(tiny_pipe, Method(), "a cat", "cat"),
    ):
        pass


def test_a_prompt_without_a_noun_asks_for_targets(tiny_pipe):
    with pytest.raises(ValueError, match="targets must be named, for no noun was found"):
        generate(tiny_pipe, Request("and with the", "auto", steps=2), AttentionRegulation())
