import importlib.util
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.models import BPE

from tracer.folders import emoji_world
from tracer.prompts import attend_and_excite_templates
from tracer.scenes import ANIMALS, COLOURS, OBJECTS, captioned

SCRIPT = emoji_world() / "make" / "tokenizer.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("emoji_tokenizer_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


JOINERS = ("a", "an", "and", "with", "photo", "of", "painting", "in", "on", "the")


@pytest.mark.parametrize("word", [*ANIMALS, *OBJECTS, *COLOURS, *JOINERS])
def test_a_word_of_the_world_is_one_token(emoji_tokenizer, word):
    assert emoji_tokenizer.tokenize(word) == [f"{word}</w>"]


def test_a_caption_is_as_many_tokens_as_words(emoji_tokenizer):
    rng = np.random.default_rng(0)
    texts = [captioned(rng, 0.3)[1] for _ in range(100)] + [p.text for p in attend_and_excite_templates()]
    for text in texts:
        assert len(emoji_tokenizer.tokenize(text)) == len(text.split())


def test_the_longest_caption_fits(emoji_tokenizer):
    longest = "an orange backpack and an orange suitcase and an orange balloon"
    assert len(emoji_tokenizer(longest)["input_ids"]) <= emoji_tokenizer.model_max_length == 16


def test_the_end_has_the_highest_id_and_the_start_is_not_zero(emoji_tokenizer):
    assert emoji_tokenizer.eos_token_id == max(emoji_tokenizer.get_vocab().values())
    assert emoji_tokenizer.bos_token_id > 0
    assert emoji_tokenizer.pad_token_id == emoji_tokenizer.eos_token_id


def test_an_unknown_word_splits_into_known_pieces(emoji_tokenizer):
    assert emoji_tokenizer.tokenize("zebra") == ["z", "e", "br", "a</w>"]


@given(text=st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_any_text_comes_back_from_its_pieces(emoji_tokenizer, text):
    ids = emoji_tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert emoji_tokenizer.unk_token_id not in ids
    assert "".join(emoji_tokenizer.decode(ids).split()) == "".join(text.lower().split())


def test_every_byte_has_a_token_inside_and_at_the_end_of_a_word(emoji_tokenizer):
    vocabulary = emoji_tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert sum(len(token) == 1 for token in vocabulary) == 256
    assert sum(len(token) == 5 and token.endswith("</w>") for token in vocabulary) == 256


def test_the_committed_folder_is_what_the_script_makes(script, tmp_path):
    made = script.build(tmp_path)
    assert made.model_max_length == 16
    for folder in (tmp_path, emoji_world() / "sd" / "tokenizer"):
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        assert json.loads((folder / "vocab.json").read_text()) == model["vocab"]
        assert [tuple(pair) for pair in model["merges"]] == script.merges_of(script.WORDS)
        assert model["vocab"] == script.vocabulary(script.merges_of(script.WORDS))


def test_the_length_can_be_chosen_for_another_model(script, tmp_path):
    assert script.build(tmp_path / "deep" / "folder", model_max_length=8).model_max_length == 8


@given(words=st.lists(st.text("abn", min_size=1, max_size=6), max_size=8))
def test_no_word_is_broken_by_a_later_one(script, words):
    merges = script.merges_of(words)
    model = BPE(script.vocabulary(merges), merges, end_of_word_suffix="</w>")
    for word in words:
        assert [token.value for token in model.tokenize(word)] == [f"{word}</w>"]
