import pytest

from metrics.layout_files import LONGEST_NAME, folder_names


@pytest.mark.parametrize(
    "prompt", ["a cat and a dog", "a snake_case, 3.5 cats!", "猫と犬", "it's - (odd)", "x" * LONGEST_NAME]
)
def test_a_prompt_that_every_file_system_takes_is_its_own_folder(prompt):
    assert folder_names([prompt]) == {prompt: prompt}


@pytest.mark.parametrize(
    "prompt",
    [
        "", ".", "..", ".hidden", "ends in a dot.", " begins blank", "ends blank ", "a/b", "a\\b", "a:b", "why?",
        "a*b", "a|b", "<a>", 'say "a"', "a\nb", "a\x00b", "a\u200bb", "CON", "nul.txt", "e\u0301",
        "x" * (LONGEST_NAME + 1), "犬" * 100,
    ],
)  # fmt: skip
def test_a_prompt_that_some_file_system_refuses_or_changes_gets_a_name_of_letters_digits_and_hash(prompt):
    (name,) = folder_names([prompt]).values()
    assert name != prompt
    assert name.isascii()
    assert name.replace("-", "").isalnum()
    assert len(name) <= 80


def test_the_name_of_such_a_prompt_tells_what_it_is_about():
    assert folder_names(["a cat/dog: very Odd"])["a cat/dog: very Odd"].startswith("a-cat-dog-very-odd-")


def test_prompts_that_a_file_system_may_take_for_one_get_different_names():
    prompts = ["A cat", "a cat", "a CAT", "ﬁsh", "fish", "straße", "STRASSE"]
    names = folder_names(prompts)
    assert list(names) == prompts
    assert len({name.casefold() for name in names.values()}) == len(prompts)
    assert (names["A cat"], names["ﬁsh"]) == ("A cat", "ﬁsh")


def test_a_name_that_is_kept_for_another_file_is_given_to_no_prompt():
    assert folder_names(["Samples"], ["samples"])["Samples"].startswith("samples-")
