import json
import os
import sys

import pytest
from PIL import Image

from metrics.layout_readers import READERS
from metrics.layouts import LOOKED_FOR, NO_TARGETS, Problem, read_folder
from tracer.prompts import Prompt, save_prompts


@pytest.fixture
def folder(tmp_path):
    """Fill a folder with images, and with files of text; return it."""
    root = tmp_path / "plain sd"
    root.mkdir()

    def fill(*names: str, **texts: str):
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")  # nothing is decoded here
        for name, text in texts.items():
            path = root / name.replace("__", "/").replace("_jsonl", ".jsonl").replace("_json", ".json").replace(
                "_csv", ".csv"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return root

    return fill


def told(found) -> list[tuple]:
    return [
        (picture.prompt, picture.seed, picture.method, picture.prompt_id, picture.targets) for picture in found.pictures
    ]


def reasons(found) -> dict[str, str]:
    """Problems of single files, without the one that counts pictures without targets."""
    files = [problem for problem in found.problems if NO_TARGETS not in problem.reason]
    return {problem.path.relative_to(found.root).as_posix(): problem.reason for problem in files}


FACTS = {
    "tag": "two_object",
    "include": [{"class": "cat", "count": 1}, {"class": "tv", "count": 2}],
    "prompt": "a photo",
}


def test_every_layout_has_a_reader_and_a_line_in_the_error():
    assert set(READERS) == set(LOOKED_FOR)


def test_geneval_is_read_with_its_classes_as_targets_and_its_grid_passed_over(folder):
    root = folder(
        "00007/samples/0001.png",
        "00007/samples/0000.png",
        "00007/grid.png",
        **{"00007__metadata_jsonl": json.dumps(FACTS)},
    )
    found = read_folder(root)
    assert found.layout == "geneval"
    assert told(found) == [("a photo", seed, "plain sd", "00007", ("cat", "tv")) for seed in (0, 1)]
    assert (found.pictures[0].tag, found.pictures[0].metadata) == ("two_object", FACTS)
    assert found.pictures[0].path == root / "00007" / "samples" / "0000.png"
    assert found.problems == ()


def test_two_folders_of_geneval_with_one_prompt_are_both_kept(folder, tmp_path):
    (tmp_path / "p.txt").write_text("a photo\n", encoding="utf-8")
    names = ("1/samples/0.png", "2/samples/0.png")
    root = folder(*names, **{f"{n}__metadata_jsonl": json.dumps(FACTS) for n in "12"})
    assert [picture.prompt_id for picture in read_folder(root, prompts=tmp_path / "p.txt").pictures] == ["1", "2"]


def test_targets_of_geneval_without_include_come_from_the_prompt_file(folder):
    prompts = json.dumps({"id": "x", "text": "a photo", "targets": ["tv"]})
    root = folder("1/samples/0.png", **{"1__metadata_jsonl": '{"prompt": "a photo"}', "prompts_jsonl": prompts})
    assert told(read_folder(root)) == [("a photo", 0, "plain sd", "x", ("tv",))]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"include": []}', '{"prompt": "x", "include": [1]}'])
def test_of_a_bad_metadata_file_there_is_one_problem_and_the_rest_is_read(folder, text):
    good = json.dumps(FACTS)
    root = folder(
        *(f"{n}/samples/{i}.png" for n in (0, 1) for i in (0, 1)),
        **{"0__metadata_jsonl": good, "1__metadata_jsonl": text},
    )
    found = read_folder(root)
    assert [picture.prompt_id for picture in found.pictures] == ["0", "0"]
    assert [problem.path for problem in found.problems] == [root / "1" / "metadata.jsonl"]


def test_compbench_prompts_end_at_the_last_underscore(folder):
    root = folder("samples/a snake_case cat_000011.png", "samples/a dog_000002.png", "a dog-grid-00000.png")
    found = read_folder(root)
    assert found.layout == "t2i-compbench"
    assert told(found) == [
        ("a dog", 2, "plain sd", "a dog", ()),
        ("a snake_case cat", 11, "plain sd", "a snake_case cat", ()),
    ]
    assert reasons(found) == {}


def test_a_number_that_compbench_would_not_write_is_a_problem(folder):
    found = read_folder(folder("samples/a dog_000001.png", "samples/a dog_0000002.png", "samples/a dog_1000000.png"))
    assert [picture.seed for picture in found.pictures] == [1, 1_000_000]
    assert list(reasons(found)) == ["samples/a dog_0000002.png"]


def test_compbench_prompts_that_no_file_name_can_hold_come_back_from_a_prompt_file(folder, tmp_path):
    long = "a very long prompt with " + "many " * 60
    texts = [long + "cats", long + "dogs", "a cat/dog and a bird", "a red_car"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts), encoding="utf-8")
    names = [long[:150].strip(), long[:150].strip(), "a cat_dog and a bird", "a red_car"]
    root = folder(*(f"samples/{names[n // 2]}_{n:06}.png" for n in range(8)))
    found = read_folder(root, prompts=tmp_path / "prompts.txt")
    assert sorted((picture.seed, picture.prompt) for picture in found.pictures) == [
        (n, texts[n // 2]) for n in range(8)
    ]
    assert reasons(found) == {}


def test_a_compbench_image_that_fits_no_prompt_of_the_file_is_a_problem(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog\n", encoding="utf-8")
    found = read_folder(
        folder("samples/a dog_000000.png", "samples/a cat_000001.png"), prompts=tmp_path / "prompts.txt"
    )
    assert [picture.prompt for picture in found.pictures] == ["a dog"]
    assert reasons(found) == {"samples/a cat_000001.png": "'a cat' fits no prompt of prompts.txt, or several"}


def test_attend_and_excite_is_read_with_targets_by_rule_and_grids_passed_over(folder):
    found = read_folder(folder("a cat and a dog/12.png", "a cat and a dog/3.png", "a cat and a dog.png"), method="a&e")
    assert found.layout == "attend-and-excite"
    assert told(found) == [("a cat and a dog", seed, "a&e", "a cat and a dog", ("cat", "dog")) for seed in (3, 12)]
    assert found.problems == ()


def test_a_folders_true_prompt_is_looked_up(folder):
    names = json.dumps({"a-cat-1f": "a cat/dog: 猫", "b": "."})
    found = read_folder(folder("a-cat-1f/0.png", "b/0.jpg", "a bird/0.png", prompts_json=names))
    assert found.layout == "attend-and-excite"
    assert [picture.prompt for picture in found.pictures] == [".", "a bird", "a cat/dog: 猫"]


def test_folder_names_that_are_ids_too_are_still_folders_of_prompts(folder):
    prompts = json.dumps({"id": "b", "text": "a cat / a dog", "targets": ["cat"], "source": ""})
    found = read_folder(folder("b/0.png", prompts_json='{"b": "a cat / a dog"}', prompts_jsonl=prompts))
    assert found.layout == "attend-and-excite"
    assert told(found) == [("a cat / a dog", 0, "plain sd", "b", ("cat",))]


def test_a_file_of_folder_names_that_is_broken_is_refused_and_another_projects_is_not_taken_for_it(folder):
    root = folder("a cat/0.png", prompts_json='{"animals": ["a cat and a dog"]}')
    assert [picture.prompt for picture in read_folder(root).pictures] == ["a cat"]
    (root / "prompts.json").write_text('{"a cat": "a ')
    with pytest.raises(ValueError, match=r"prompts\.json must be JSON"):
        read_folder(root)


def test_what_lies_two_folders_deep_is_no_prompt_unless_a_prompt_file_says_so(folder, tmp_path):
    root = folder("a cat/0.png", "a cat/dog/0.png")
    assert list(reasons(read_folder(root))) == ["a cat/dog/0.png"]
    (tmp_path / "p.txt").write_text("a cat\na cat/dog\n", encoding="utf-8")
    assert [picture.prompt for picture in read_folder(root, prompts=tmp_path / "p.txt").pictures] == [
        "a cat",
        "a cat/dog",
    ]


def test_a_folder_of_methods_is_not_read_as_one(folder):
    root = folder("ours/a cat/0.png", "theirs/a cat/0.png")
    with pytest.raises(ValueError, match="must be in a known layout"):
        read_folder(root)
    with pytest.raises(ValueError, match="read each method's folder alone"):
        read_folder(root, "attend-and-excite")
    assert told(read_folder(root / "ours")) == [("a cat", 0, "ours", "a cat", ())]


def test_syngens_models_are_methods(folder):
    found = read_folder(folder("a red car/sd_2_5.jpg", "a red car/syngen_5.jpg", "a red car/x.jpg"), method="unused")
    assert found.layout == "syngen"
    assert [(picture.method, picture.seed) for picture in found.pictures] == [("sd_2", 5), ("syngen", 5)]
    assert list(reasons(found)) == ["a red car/x.jpg"]


def test_plain_names_are_ids_and_seeds(folder):
    root = folder("a_1_5.png", "a_1/6.png", "b.png", "c_1.png", "a_1.jpg")
    rows = [Prompt("a_1", "a cat", ("cat",), ""), Prompt("b", "a dog and a car", (), "")]
    save_prompts(root / "prompts.jsonl", rows)
    found = read_folder(root)
    assert found.layout == "plain"
    assert told(found) == [
        ("a cat", 5, "plain sd", "a_1", ("cat",)),
        ("a cat", 6, "plain sd", "a_1", ("cat",)),
        ("a cat", None, "plain sd", "a_1", ("cat",)),
        ("a dog and a car", None, "plain sd", "b", ()),  # the file says that there are none
    ]
    assert reasons(found) == {"c_1.png": "no prompt is known for it in prompts.jsonl"}
    save_prompts(root / "prompts.jsonl", [*rows, Prompt("a", "a bird", (), "")])
    assert reasons(read_folder(root))["a_1.jpg"] == "two prompts have ids that fit it in prompts.jsonl"


def test_a_table_names_each_file(folder):
    lines = ("./x.png,a cat,3,cat,ours,1", "sub/y.webp,a dog,,,,2", "z.png,a,,,,", "x.png,b,,,,")
    table = "\n".join(("file,prompt,seed,targets,method,group", *lines))
    found = read_folder(folder("x.png", "sub/y.webp", "w.png", prompts_csv=table))
    assert found.layout == "plain"
    assert told(found) == [("a cat", 3, "ours", "a cat", ("cat",)), ("a dog", None, "plain sd", "a dog", ())]
    assert found.pictures[0].metadata == {"group": "1"}
    assert reasons(found) == {
        "z.png": "prompts.csv, line 4 names it, but it is not there",
        "x.png": "prompts.csv, line 5 names it again",
        "w.png": "no prompt is known for it: prompts.csv does not name it",
    }


def test_the_metadata_of_an_image_folder_is_read(folder):
    lines = '{"file_name": "train/0001.png", "text": "a red bowl"}\n{"text": "a"}\n'
    found = read_folder(folder("train/0001.png", metadata_jsonl=lines))
    assert (found.layout, found.pictures[0].prompt) == ("plain", "a red bowl")
    assert reasons(found) == {".": "metadata.jsonl, line 2 names no file, but others do"}


def test_a_prompt_file_gives_ids_and_targets_to_other_layouts(folder, tmp_path):
    save_prompts(tmp_path / "p.jsonl", [Prompt("z-1", "a red bus", ("bus",), "mine")])
    found = read_folder(folder("a red bus/0.png", "a bus/0.png"), prompts=tmp_path / "p.jsonl")
    assert told(found) == [("a red bus", 0, "plain sd", "z-1", ("bus",))]
    assert reasons(found) == {"a bus/0.png": "'a bus' fits no prompt of p.jsonl, or several"}


def test_pictures_without_targets_are_counted_in_one_problem(folder):
    root = folder("a bus/0.png", "a bus/1.png", "a cat and a dog/0.png")
    found = read_folder(root)
    assert found.problems == (Problem(root, f"2 of 3 pictures have {NO_TARGETS}"),)


def test_of_two_files_for_one_picture_the_later_is_a_problem_that_names_both(folder):
    root = folder("a bus/1.png", "a bus/1.jpg", "a bus/01.png", "a bus/2.png")
    found = read_folder(root)
    assert [picture.path.name for picture in found.pictures] == ["01.png", "2.png"]
    assert list(reasons(found)) == ["a bus/1.jpg", "a bus/1.png"]
    assert all(str(root / "a bus" / "01.png") in reason for reason in reasons(found).values())


def test_files_without_a_seed_are_no_duplicates(folder):
    table = "file,prompt\nx.png,a cat\ny.png,a cat\n"
    assert len(read_folder(folder("x.png", "y.png", prompts_csv=table)).pictures) == 2


def test_hidden_files_and_what_is_no_image_are_passed_over(folder):
    root = folder(
        "a bus/0.png", "a bus/.0.png", "a bus/Thumbs.db", ".cache/a dog/0.png", "a bus/notes.txt", "a bus/._1.png"
    )
    found = read_folder(root)
    assert [picture.path.name for picture in found.pictures] == ["0.png"]
    assert reasons(found) == {}


@pytest.mark.parametrize("name", ["notes.txt", ".hidden.png", "Thumbs.db"])
def test_a_folder_without_images_is_refused_by_name(folder, name):
    with pytest.raises(ValueError, match=r"plain sd must hold images .*\.png.*, got none"):
        read_folder(folder(name))


def test_what_is_no_folder_is_refused_by_name(folder):
    with pytest.raises(ValueError, match=r"root must be a folder, got .*nowhere"):
        read_folder(folder() / "nowhere")


def test_a_folder_of_which_nothing_can_be_used_is_refused_with_the_reasons(folder):
    with pytest.raises(ValueError, match=r"got none as syngen: .*x\.png: is not <prompt>/<model>_<seed>\.jpg"):
        read_folder(folder("x.png"), "syngen")


@pytest.mark.parametrize(
    "names",
    [
        ("cat.png",),
        ("train/0001.png",),  # a class or an id as much as a prompt
        ("COCO_val2014_000000000139.jpg",),
        ("samples/0000.png",),  # one prompt's folder of GenEval
        ("00000/samples/0000.png",),  # without metadata
        ("a bus/x.png",),
    ],
)
def test_where_no_layout_fits_the_error_lists_what_was_looked_for(folder, names):
    with pytest.raises(ValueError, match="must be in a known layout") as caught:
        read_folder(folder(*names))
    assert all(f"{layout}: {form}" in str(caught.value) for layout, form in LOOKED_FOR.items())
    assert names[0] in str(caught.value)


def test_a_prompt_of_one_word_is_read_where_the_layout_is_said(folder):
    assert [picture.prompt for picture in read_folder(folder("cat/1.png"), "attend-and-excite").pictures] == ["cat"]


def test_a_prompt_in_another_script_is_a_prompt(folder):
    assert [picture.prompt for picture in read_folder(folder("猫と犬/1.png")).pictures] == ["猫と犬"]


@pytest.mark.parametrize(
    ("names", "layouts"),
    [
        (("a cat/0.png", "a cat/sd_0.jpg"), ("attend-and-excite", "syngen")),
        (("a cat/0.png", "samples/a dog_000001.png"), ("attend-and-excite", "t2i-compbench")),
        (("00000/samples/0.png", "samples/a dog_000001.png"), ("geneval", "t2i-compbench")),
    ],
)
def test_where_two_layouts_fit_the_error_names_both(folder, names, layouts):
    root = folder(*names, **({"00000__metadata_jsonl": json.dumps(FACTS)} if names[0][0] == "0" else {}))
    with pytest.raises(ValueError, match="must be in one layout") as caught:
        read_folder(root)
    assert all(f"{layout} ({name})" in str(caught.value) for layout, name in zip(layouts, names, strict=True))
    assert read_folder(root, layouts[0]).layout == layouts[0]


def test_the_order_does_not_hang_on_the_file_system(folder, monkeypatch):
    root = folder(*(f"a {name}/{seed}.png" for name in "cab" for seed in (10, 9, 0)))
    order = [(picture.prompt, picture.seed) for picture in read_folder(root).pictures]
    assert order == [(f"a {name}", seed) for name in "abc" for seed in (0, 9, 10)]
    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda *a, **k: ((at, dirs, files[::-1]) for at, dirs, files in [*walk(*a, **k)][::-1])
    )
    assert [(picture.prompt, picture.seed) for picture in read_folder(root).pictures] == order


def test_links_to_folders_are_followed_and_a_ring_of_them_is_not(folder, tmp_path):
    root = folder("a bus/0.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (1, 1)).save(elsewhere / "4.png")
    (root / "a dog").symlink_to(elsewhere)
    (root / "a ring").symlink_to(root)
    found = read_folder(root)
    assert [(picture.prompt, picture.seed) for picture in found.pictures] == [("a bus", 0), ("a dog", 4)]
    assert reasons(found) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text_is_a_problem(folder):
    root = folder("a bus/0.png")
    (root / os.fsdecode(b"a caf\xe9")).mkdir()
    (root / os.fsdecode(b"a caf\xe9") / "0.png").write_bytes(b"")
    found = read_folder(root)
    assert [picture.prompt for picture in found.pictures] == ["a bus"]
    assert list(reasons(found).values()) == ["its name must be UTF-8"]
