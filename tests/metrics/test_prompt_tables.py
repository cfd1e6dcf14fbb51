import json

import pytest

from metrics.prompt_tables import PromptTable, Row, find_prompt_file, key_of, read_prompt_table, template_targets
from tracer.prompts import attend_and_excite_templates, save_prompts


@pytest.fixture
def file(tmp_path):
    def write(name: str, text: str):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_the_rule_finds_the_targets_of_every_prompt_of_the_benchmark():
    for prompt in attend_and_excite_templates():
        assert template_targets(prompt.text) == prompt.targets


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("a elephant and a orange car", ("elephant", "car")),  # as the benchmark's own file writes them
        ("a cat with a crown", ("cat", "crown")),
        ("a cat and a cat", ()),
        ("a cat and a spaceship", ()),
        ("a cat and a dog in the snow", ()),
        ("a cat", ()),
    ],
)
def test_the_rule_reads_the_benchmarks_templates_and_nothing_else(text, targets):
    assert template_targets(text) == targets


def test_a_prompt_file_of_the_tracer_is_read(tmp_path):
    prompts = attend_and_excite_templates()[:3]
    save_prompts(tmp_path / "p.jsonl", prompts)
    rows = read_prompt_table(tmp_path / "p.jsonl").rows
    assert [(row.id, row.text, row.targets) for row in rows] == [(p.id, p.text, p.targets) for p in prompts]


def test_a_set_that_came_with_us_is_read_by_its_bare_name(tmp_path):
    path = type(tmp_path)("attend-and-excite-templates")
    assert len(read_prompt_table(path).rows) == 276


def test_csv_and_json_lines_say_the_same(file):
    table = file(
        "p.csv", 'file,prompt,seed,targets,method,kind\r\nx.png,"a ""big"" cat,\nat night",7,cat; dog,ours,\r\n'
    )
    row = {"file": "x.png", "prompt": 'a "big" cat,\nat night', "seed": 7, "targets": ["cat", "dog"], "method": "ours"}
    lines = file("p.jsonl", json.dumps(row))
    (first,), (second,) = (read_prompt_table(path).rows for path in (table, lines))
    for name in ("file", "text", "id", "seed", "targets", "method", "metadata"):
        assert getattr(first, name) == getattr(second, name)
    assert (first.text, first.seed, first.targets) == ('a "big" cat,\nat night', 7, ("cat", "dog"))


def test_targets_of_genevals_own_prompt_file_are_its_classes(file):
    facts = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"}
    (row,) = read_prompt_table(file("evaluation_metadata.jsonl", json.dumps(facts))).rows
    assert (row.text, row.targets, row.tag, row.metadata) == (
        "two cats",
        ("cat",),
        "counting",
        {"include": facts["include"]},
    )


def test_a_text_file_has_a_prompt_a_line_and_a_prompt_is_its_own_id(file):
    rows = read_prompt_table(file("p.txt", "a cat\r\n\na dog\n a dog\n")).rows
    assert [(row.id, row.text) for row in rows] == [("a cat", "a cat"), ("a dog", "a dog"), (" a dog", " a dog")]


def test_targets_that_are_not_spoken_of_differ_from_none_given(file):
    lines = '{"text": "x"}\n{"text": "y", "targets": []}\n'
    assert [row.targets for row in read_prompt_table(file("p.jsonl", lines)).rows] == [None, ()]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("p.jsonl", "{", r"p\.jsonl, line 1: a line must be one JSON object"),
        ("p.jsonl", '{"text": "x"}\n[1]', r"p\.jsonl, line 2: a line must be one JSON object"),
        ("p.jsonl", '{"id": "x"}', "text must be a string, got None"),
        ("p.jsonl", '{"text": "x", "prompt": "y"}', "under two names"),
        ("p.jsonl", '{"text": "x", "targets": [1]}', "targets must be a list of strings"),
        ("p.jsonl", '{"text": "x", "seed": true}', "seed must be a whole number, got True"),
        ("p.jsonl", '{"text": "x", "include": [{"count": 1}]}', "an item's class must be a string"),
        ("p.csv", "prompt,seed\nx,1.5\n", "seed must be a whole number, got '1.5'"),
        ("p.csv", "prompt,seed\nx\n", "as many fields as the headings"),
        ("p.csv", "prompt,seed\nx,1,2\n", "as many fields as the headings"),
        ("p.csv", 'prompt\n"x', "must be CSV"),
        (
            "p.jsonl",
            '{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}',
            "line 2: an id must be unique, got 'a' as in p",
        ),
        ("p.jsonl", '{"id": "a", "text": "x"}\n{"id": "a", "text": "x"}', "an id must be unique"),
        ("p.csv", "file,id,text\n1.png,a,x\n2.png,a,y\n", "an id must be unique"),
        ("p.xlsx", "", r"prompts must be a file of \.jsonl, \.csv, \.txt"),
    ],
)
def test_a_wrong_prompt_file_is_refused_with_the_line(file, name, text, error):
    path = file(name, text)
    with pytest.raises(ValueError, match=error):
        read_prompt_table(path)


def test_a_missing_prompt_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_prompt_table(tmp_path / "none.jsonl")


def test_a_prompt_file_in_a_folder_is_found_and_two_are_refused(file, tmp_path):
    assert find_prompt_file(tmp_path) is None
    first = file("metadata.jsonl", "")
    assert find_prompt_file(tmp_path) == first
    file("prompts.csv", "")
    with pytest.raises(ValueError, match=r"prompts\.csv and metadata\.jsonl"):
        find_prompt_file(tmp_path)


LONG = "a photograph of a very tall giraffe that "


@pytest.mark.parametrize(
    ("name", "place", "text"),
    [
        ("a cat/dog", None, "a cat/dog"),
        ("a cat_dog", None, "a cat/dog"),
        ("A Cat:Dog", None, "a cat/dog"),
        (LONG + "si", None, LONG + "sits"),  # cut off
        (LONG + "s", None, None),  # fits two
        (LONG + "s", 2, LONG + "stands"),
        (LONG + "s", 0, None),  # the order says a prompt that the name does not fit
        (LONG + "s", 99, None),
        ("a ca", 0, None),  # too short for a beginning
        ("a zebra", 0, None),
        ("???", 4, None),
        ("", 0, None),
    ],
)
def test_a_name_finds_the_one_prompt_that_it_fits(name, place, text):
    texts = ("a cat/dog", LONG + "sits", LONG + "stands", "a dog", "!!!")
    row = PromptTable([Row(text, f"id-{text}") for text in texts]).match(name, place)
    assert (row and row.text) == text


def test_of_rows_with_one_text_what_they_agree_on_comes_back():
    rows = [
        Row("a cat", "one", ("cat",)),
        Row("a cat", "two", ("cat",)),
        Row("a dog", "three"),
        Row("a dog", "four", ()),
    ]
    table = PromptTable(rows)
    cat, dog = table.of_text("a cat"), table.match("a_dog")
    assert (cat.id, cat.targets) == ("a cat", ("cat",))
    assert (dog.id, dog.targets) == ("a dog", None)
    assert table.of_text("a bird") is None


def test_a_key_keeps_letters_and_digits_of_all_scripts():
    assert key_of("Ein GROẞES Haus, 猫/犬_7") == "eingrosseshaus猫犬7"
