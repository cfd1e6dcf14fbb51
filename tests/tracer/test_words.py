import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from tracer.folders import emoji_world
from tracer.scenes import ANIMALS, COLOURS, OBJECTS
from tracer.words import Target, positions_of, targets_of, tokens_of

WORDS = ("a", "an", "and", "with", *ANIMALS, *OBJECTS, *COLOURS)
PROMPTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=14)


def kinds(tokens):
    return [token.kind for token in tokens]


def pieces(tokenizer, prompt, target):
    return [tokens_of(tokenizer, prompt)[i].piece for i in positions_of(tokenizer, prompt, target)]


def test_a_word_is_found_where_the_benchmark_has_it(emoji_tokenizer, clip_tokenizer):
    for tokenizer in (emoji_tokenizer, clip_tokenizer):
        assert positions_of(tokenizer, "a cat and a dog", "dog") == (5,)
        assert positions_of(tokenizer, "a cat and a red car", "car") == (6,)
        assert positions_of(tokenizer, "a blue bowl and a pink apple", "pink") == (6,)


def test_a_word_of_several_pieces_has_a_position_for_each(clip_tokenizer, emoji_tokenizer):
    assert pieces(clip_tokenizer, "a cat with a sombrero", "sombrero") == ["som", "brero</w>"]
    assert positions_of(clip_tokenizer, "a cat with a sombrero", "sombrero") == (5, 6)
    assert pieces(emoji_tokenizer, "a zebra", "zebra") == ["z", "e", "br", "a</w>"]


def test_a_letter_of_several_bytes_keeps_all_of_them(emoji_tokenizer):
    assert pieces(emoji_tokenizer, "an é", "é") == ["Ã", "©</w>"]


def test_a_phrase_has_the_positions_of_all_its_words(clip_tokenizer):
    prompt = "a blue bowl and a pink  apple"
    assert positions_of(clip_tokenizer, prompt, "pink apple") == (6, 7)
    assert positions_of(clip_tokenizer, prompt, "a pink apple") == (5, 6, 7)


def test_upper_and_lower_case_do_not_matter(clip_tokenizer):
    assert positions_of(clip_tokenizer, "A Cat and a dog", "cat") == (2,)
    assert positions_of(clip_tokenizer, "a cat and a dog", "DOG") == (5,)


def test_of_a_repeated_word_the_first_is_meant_unless_a_number_is_given(clip_tokenizer):
    prompt = "a cat and a dog and a cat"
    assert positions_of(clip_tokenizer, prompt, "cat") == (2,)
    assert positions_of(clip_tokenizer, prompt, "cat#1") == (2,)
    assert positions_of(clip_tokenizer, prompt, "cat#2") == (8,)
    assert positions_of(clip_tokenizer, prompt, "a cat#2") == (7, 8)


@pytest.mark.parametrize("target", ["cat#0", "cat#3"])
def test_a_repeat_that_is_not_there_is_refused(clip_tokenizer, target):
    with pytest.raises(ValueError, match=f"target '{target}' must name one of the 2 'cat' in the prompt"):
        positions_of(clip_tokenizer, "a cat and a cat", target)


def test_a_number_sign_that_the_prompt_itself_has_is_text(clip_tokenizer):
    assert pieces(clip_tokenizer, "a cat and a cat#2", "cat#2") == ["cat</w>", "#</w>", "2</w>"]


def test_character_offsets_name_the_tokens_they_touch(clip_tokenizer):
    prompt = "a cat with a sombrero"
    assert positions_of(clip_tokenizer, prompt, (2, 5)) == (2,)
    assert positions_of(clip_tokenizer, prompt, (16, 17)) == (6,)
    assert targets_of(clip_tokenizer, prompt, [(13, 21)]) == (Target("sombrero", (5, 6)),)


@pytest.mark.parametrize("span", [(3, 3), (-1, 2), (0, 6), (1, 2)])
def test_character_offsets_outside_the_text_are_refused(clip_tokenizer, span):
    with pytest.raises(ValueError, match="target must be offsets of text in the 5 characters of the prompt"):
        positions_of(clip_tokenizer, "a cat", span)


def test_a_word_that_is_not_there_is_refused_with_those_that_are(clip_tokenizer):
    with pytest.raises(ValueError, match=r"^target 'glasses' is not .* words are a, cat, with, a, hat$"):
        positions_of(clip_tokenizer, "a cat, with a hat!", "glasses")


PARTS = [("a carpet", "car"), ("a scar", "car"), ("café", "caf"), ("a_b", "a")]


@pytest.mark.parametrize(("prompt", "target"), PARTS)
def test_a_part_of_a_word_is_not_found(clip_tokenizer, prompt, target):
    with pytest.raises(ValueError, match="is not in the prompt"):
        positions_of(clip_tokenizer, prompt, target)


def test_a_part_of_a_word_is_passed_over_on_the_way_to_the_word(clip_tokenizer):
    assert positions_of(clip_tokenizer, "a carpet under a car", "car") == (5,)


def test_an_accent_that_is_a_character_of_its_own_belongs_to_its_word(clip_tokenizer):
    with pytest.raises(ValueError, match="is not in the prompt"):
        positions_of(clip_tokenizer, "a cafe\u0301", "cafe")


@pytest.mark.parametrize("target", ["", " "])
def test_an_empty_target_is_refused(clip_tokenizer, target):
    with pytest.raises(ValueError, match="is not in the prompt"):
        positions_of(clip_tokenizer, "a cat", target)


@pytest.mark.parametrize("prompt", ["a cat, a dog.", "(a) cat's dog", 'a "cat" & dog?!'])
def test_punctuation_is_no_part_of_a_target(clip_tokenizer, prompt):
    assert pieces(clip_tokenizer, prompt, "cat") == ["cat</w>"]
    assert pieces(clip_tokenizer, prompt, "dog") == ["dog</w>"]


def test_a_target_may_hold_punctuation(clip_tokenizer):
    assert pieces(clip_tokenizer, "an x-ray of a cat", "x-ray") == ["x</w>", "-</w>", "ray</w>"]
    assert pieces(clip_tokenizer, "rock & roll", "&") == ["&</w>"]


def test_an_added_token_is_one_word():
    tokenizer = CLIPTokenizer.from_pretrained(emoji_world() / "sd" / "tokenizer", local_files_only=True)
    tokenizer.add_tokens("<cat-toy>")
    assert pieces(tokenizer, "a photo of <cat-toy>", "<cat-toy>") == ["<cat-toy>"]
    assert tokens_of(tokenizer, "a photo of <cat-toy>")[4].word == "<cat-toy>"


def test_targets_keep_their_order_and_text(emoji_tokenizer):
    found = targets_of(emoji_tokenizer, "a cat and a dog", ("dog", "cat"))
    assert found == (Target("dog", (5,)), Target("cat", (2,)))


def test_the_same_word_twice_is_refused(emoji_tokenizer):
    with pytest.raises(ValueError, match=r"'cat' and 'cat' for the same tokens; .* second is written 'cat#2'"):
        targets_of(emoji_tokenizer, "a cat and a cat", ("cat", "cat"))
    assert len(targets_of(emoji_tokenizer, "a cat and a cat", ("cat", "cat#2"))) == 2


def test_every_position_of_the_sequence_has_a_token(emoji_tokenizer):
    tokens = tokens_of(emoji_tokenizer, "a cat and a dog")
    assert [token.index for token in tokens] == list(range(16))
    assert kinds(tokens) == ["sos", *["word"] * 5, "eos", *["pad"] * 9]
    assert [token.word for token in tokens[:8]] == [None, "a", "cat", "and", "a", "dog", None, None]
    assert [token.word_index for token in tokens[:8]] == [None, 0, 1, 2, 3, 4, None, None]
    padded = emoji_tokenizer("a cat and a dog", padding="max_length")["input_ids"]
    assert [token.token_id for token in tokens] == padded


def test_padding_with_the_end_token_is_padding(clip_tokenizer):
    tokens = tokens_of(clip_tokenizer, "a cat")
    assert {token.token_id for token in tokens[3:]} == {49407}
    assert kinds(tokens)[:5] == ["sos", "word", "word", "eos", "pad"]


def test_padding_with_the_exclamation_mark_is_padding_and_a_written_one_is_a_word(sd2_tokenizer):
    tokens = tokens_of(sd2_tokenizer, "a cat!")
    assert kinds(tokens)[:6] == ["sos", "word", "word", "word", "eos", "pad"]
    assert [token.token_id for token in tokens[4:]] == [49407, *[0] * 72]
    assert tokens[3].word == "!"


def test_an_empty_prompt_has_a_start_and_an_end(emoji_tokenizer):
    assert kinds(tokens_of(emoji_tokenizer, "")) == ["sos", "eos", *["pad"] * 14]


def test_a_possessive_and_its_noun_are_one_word(clip_tokenizer):
    tokens = tokens_of(clip_tokenizer, "a Cat's hat")
    assert [(token.piece, token.word) for token in tokens[2:5]] == [
        ("cat</w>", "Cat's"),
        ("'s</w>", "Cat's"),
        ("hat</w>", "hat"),
    ]


def test_a_prompt_past_the_length_is_refused_with_the_words_that_would_be_cut(emoji_tokenizer):
    fits = "a cat and a dog and a bird and a bear and a lion"
    assert kinds(tokens_of(emoji_tokenizer, fits)) == ["sos", *["word"] * 14, "eos"]
    message = r"^the prompt must fit into 16 tokens, got 18 with start and end; .* would be cut: an, apple$"
    with pytest.raises(ValueError, match=message):
        tokens_of(emoji_tokenizer, f"{fits} an apple")
    with pytest.raises(ValueError, match=message):
        positions_of(emoji_tokenizer, f"{fits} an apple", "cat")


def test_a_word_whose_last_piece_would_be_cut_is_named(emoji_tokenizer):
    with pytest.raises(ValueError, match=r"got 17 with start and end; these words would be cut: zebra$"):
        tokens_of(emoji_tokenizer, "a cat and a dog and a red bird and a zebra")


@given(words=PROMPTS, joiner=st.sampled_from([" ", "  ", ", ", "-", " / "]))
def test_every_word_is_found_at_its_own_tokens(words, joiner, clip_tokenizer):
    prompt = joiner.join(words)
    tokens = tokens_of(clip_tokenizer, prompt)
    seen: dict[str, int] = {}
    found = []
    for word in words:
        seen[word] = seen.get(word, 0) + 1
        found.append(positions_of(clip_tokenizer, prompt, f"{word}#{seen[word]}"))
    assert [tokens[at].word for (at,) in found] == words
    assert found == sorted(set(found))


@given(prompt=st.text(max_size=16))
def test_the_words_of_any_text_share_out_all_its_tokens(prompt, clip_tokenizer):
    tokens = tokens_of(clip_tokenizer, prompt)
    content = [token for token in tokens if token.kind == "word"]
    assert kinds(tokens)[: len(content) + 2] == ["sos", *["word"] * len(content), "eos"]
    numbers = [token.word_index for token in content]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(len(set(numbers))))
    words = {token.word_index: token.word for token in content}
    assert "".join("".join(words.values()).split()) == "".join(prompt.split())


@given(text=st.text(min_size=1, max_size=16))
def test_every_character_but_space_lies_in_a_token(text, clip_tokenizer):
    prompt = unicodedata.normalize("NFC", text)  # the tokenizer drops an accent's own place
    for at, character in enumerate(prompt):
        if character.strip():
            assert positions_of(clip_tokenizer, prompt, (at, at + 1))
