import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from metrics.decoding import BadImage, decode
from metrics.layout_writers import ClipResult, GenevalResult, geneval_summary, write_attend_and_excite, write_geneval
from metrics.layouts import Picture, read_folder
from tracer.prompts import load_prompts

FACTS = {"tag": "counting", "include": [{"class": "cat", "count": 3}], "exclude": [{"class": "cat", "count": 4}]}


@pytest.fixture
def picture(tmp_path):
    """Make pictures, each of its own colour."""
    made = []

    def make(prompt="a cat and a dog", seed=0, suffix="png", **fields):
        path = tmp_path / f"source-{len(made)}.{suffix}"
        made.append(path)
        Image.new("RGB", (8, 8), (40 * len(made) % 256, 7, 9)).save(path)
        return Picture(path, prompt, seed, **{"method": "ours", "prompt_id": prompt} | fields)

    return make


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_geneval_rows_are_the_ones_that_its_own_script_writes(picture, tmp_path):
    facts = FACTS | {"prompt": "three cats"}
    first = picture("three cats", 5, targets=("cat",), tag="counting", metadata=facts)
    second = picture("a/b", 12, targets=("dog", "car"), tag="two_object")
    results = {
        first.path: GenevalResult(False, "expected cat>=3, found 1", {"cat": [(1.0, 2.0, 3.0, 4.0, 0.5)]}),
        second.path: GenevalResult(True),
    }
    root = tmp_path / "out"
    write_geneval(root, [first, second], results)
    include = [{"class": "dog", "count": 1}, {"class": "car", "count": 1}]
    written = {"tag": "two_object", "include": include, "prompt": "a/b"}
    assert lines(root / "results.jsonl") == [
        {
            "filename": str(root / "00000/samples/00005.png"),
            "tag": "counting",
            "prompt": "three cats",
            "correct": False,
            "reason": "expected cat>=3, found 1",
            "metadata": json.dumps(facts),
            "details": '{"cat": [[1.0, 2.0, 3.0, 4.0, 0.5]]}',
        },
        {
            "filename": str(root / "00001/samples/00012.png"),
            "tag": "two_object",
            "prompt": "a/b",
            "correct": True,
            "reason": "",
            "metadata": json.dumps(written),
            "details": "{}",
        },
    ]
    assert json.loads((root / "00000" / "metadata.jsonl").read_text()) == facts
    assert json.loads((root / "00001" / "metadata.jsonl").read_text()) == written
    assert (root / "summary.txt").read_text() == geneval_summary(lines(root / "results.jsonl"))


def test_the_summary_is_what_genevals_script_prints():
    answers = {
        "two_object": [(0, True), (0, False), (1, False)],
        "colors": [(2, True), (2, True), (3, False), (3, True)],
    }
    rows = [
        {"tag": tag, "metadata": str(prompt), "correct": correct}
        for tag, images in answers.items()
        for prompt, correct in images
    ]
    assert geneval_summary(rows) == (
        "Summary\n=======\nTotal images: 7\nTotal prompts: 4\n% correct images: 57.14%\n% correct prompts: 75.00%\n\n"
        "Task breakdown\n==============\ntwo_object       = 33.33% (1 / 3)\ncolors           = 75.00% (3 / 4)\n\n"
        "Overall score (avg. over tasks): 0.54167\n"
    )
    with pytest.raises(ValueError, match="at least one image"):
        geneval_summary([])


def test_genevals_own_summary_reads_our_rows(picture, tmp_path):
    pictures = [picture("a/b", seed, prompt_id="x", tag="colors") for seed in (0, 1)]
    write_geneval(tmp_path / "out", pictures, {p.path: GenevalResult(p.seed == 1) for p in pictures})
    table = pd.read_json(tmp_path / "out" / "results.jsonl", orient="records", lines=True)
    assert table["correct"].mean() == 0.5
    assert table.groupby("metadata")["correct"].any().mean() == 1
    assert list(table["prompt"]) == ["a/b", "a/b"]


def test_clip_scores_are_written_as_attend_and_excites_script_writes_them(picture, tmp_path):
    first, second = picture("a cat and a dog", 1), picture("a cat and a dog", 0)
    other, whole = picture("a frog with a bow", 7, "jpg"), picture("a bench", 0)
    clip = {
        first.path: ClipResult(0.3, 0.1, 0.2),
        second.path: ClipResult(0.4, 0.3, 0.25),
        other.path: ClipResult(0.2, 0.5, 0.6),
        whole.path: ClipResult(0.9),
    }
    root = tmp_path / "out"
    write_attend_and_excite(root, [first, second, other, whole], clip)
    raw = {
        "a cat and a dog": {
            "full_text": [0.4, 0.3],
            "first_half": [0.3, 0.1],
            "second_half": [0.25, 0.2],
            "image_names": ["0.png", "1.png"],
        },
        "a frog with a bow": {
            "full_text": [0.2],
            "first_half": [0.5],
            "second_half": [0.6],
            "image_names": ["7.jpg"],
        },
    }
    assert (root / "clip_raw_metrics.json").read_text() == json.dumps(raw, sort_keys=True, indent=4)
    means = json.loads((root / "clip_aggregated_metrics.json").read_text())
    assert means == {
        "full_text_aggregation": pytest.approx((0.4 + 0.3 + 0.2) / 3),
        "min_first_second_aggregation": pytest.approx((0.25 + 0.1 + 0.5) / 3),
    }
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == [
        "a bench",
        "a cat and a dog",
        "a frog with a bow",
    ]


def test_files_are_copied_where_the_other_project_reads_their_kind_and_made_png_elsewhere(picture, tmp_path):
    pictures = [picture(seed=seed, suffix=suffix) for seed, suffix in enumerate(("png", "jpeg", "webp"))]
    write_geneval(tmp_path / "g", pictures)
    write_attend_and_excite(tmp_path / "a", pictures)
    geneval = sorted((tmp_path / "g" / "00000" / "samples").iterdir())
    excite = sorted((tmp_path / "a" / "a cat and a dog").iterdir())
    assert [path.name for path in geneval] == ["00000.png", "00001.png", "00002.png"]
    assert [path.name for path in excite] == ["0.png", "1.jpg", "2.png"]
    assert [excite[i].read_bytes() == pictures[i].path.read_bytes() for i in range(3)] == [True, True, False]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in geneval)
    for files in (geneval, excite):
        for source, copy in zip(pictures, files, strict=True):
            assert decode(copy).image.tobytes() == decode(source.path).image.tobytes()


def test_pictures_without_a_seed_get_the_lowest_free_numbers(picture, tmp_path):
    pictures = [picture(seed=seed) for seed in (None, 0, None, 2)]
    write_geneval(tmp_path / "out", pictures)
    copies = [(tmp_path / "out" / "00000" / "samples" / f"{n:05}.png").read_bytes() for n in range(4)]
    assert copies == [pictures[i].path.read_bytes() for i in (1, 0, 3, 2)]


def test_ids_survive_where_the_layout_has_no_place_for_them(picture, tmp_path):
    pictures = [picture("a cat and a dog", 3, prompt_id="animals-000", targets=("cat", "dog"))]
    for write in (write_geneval, write_attend_and_excite):
        root = tmp_path / write.__name__
        write(root, pictures)
        assert [p.prompt_id for p in read_folder(root).pictures] == ["animals-000"]
        assert [(p.id, p.targets) for p in load_prompts(root / "prompts.jsonl")] == [("animals-000", ("cat", "dog"))]


def test_two_ids_of_one_prompt_are_two_folders_of_geneval(picture, tmp_path):
    write_geneval(tmp_path / "out", [picture(prompt_id="x"), picture(prompt_id="y")])
    assert [(p.prompt_id, p.seed) for p in read_folder(tmp_path / "out").pictures] == [("00000", 0), ("00001", 0)]


@pytest.mark.parametrize("write", [write_geneval, write_attend_and_excite])
def test_a_folder_that_cannot_be_written_whole_is_not_written_at_all(picture, tmp_path, write):
    missing = replace(picture(seed=1), path=tmp_path / "missing.png")
    (tmp_path / "bad.webp").write_bytes(b"no image")
    bad = replace(missing, path=tmp_path / "bad.webp")
    good = picture()
    before = sorted(path.name for path in tmp_path.iterdir())
    for broken, error in ((missing, FileNotFoundError), (bad, BadImage)):
        with pytest.raises(error):
            write(tmp_path / "out", [good, broken])
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match="got none for"):
        write(tmp_path / "out", [good], {})
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("write", [write_geneval, write_attend_and_excite])
def test_a_folder_that_holds_something_is_left_alone_and_an_empty_one_is_filled(picture, tmp_path, write):
    root = tmp_path / "out"
    root.mkdir()
    write(root, [picture()])
    held = sorted(root.rglob("*"))
    with pytest.raises(ValueError, match="root must be a new or an empty folder, got"):
        write(root, [picture()])
    assert sorted(root.rglob("*")) == held
    with pytest.raises(ValueError, match="new or an empty folder"):
        write(root / "prompts.jsonl", [picture()])


@pytest.mark.parametrize("write", [write_geneval, write_attend_and_excite])
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ([{}, {}], "seed must be unique, got"),
        ([{"seed": -1}], "seed must not be negative, got -1"),
        ([{"method": "a"}, {"method": "b"}], "pictures must be of one method, got a, b"),
        ([], "pictures must be of one method, got no picture"),
        ([{"prompt": "x", "prompt_id": "i"}, {"prompt": "y", "prompt_id": "i"}], "prompt_id must stand for one prompt"),
        ([{"targets": ("a",)}, {"seed": 1}], "targets must be one prompt's"),
    ],
)
def test_pictures_that_would_be_lost_in_the_layout_are_refused(picture, tmp_path, write, fields, error):
    with pytest.raises(ValueError, match=error):
        write(tmp_path / "out", [picture(**each) for each in fields])


def test_targets_that_contradict_include_are_refused(picture, tmp_path):
    with pytest.raises(ValueError, match="targets must be the classes of include"):
        write_geneval(tmp_path / "out", [picture(targets=("dog",), metadata=FACTS)])
    with pytest.raises(ValueError, match="metadata must be one prompt's"):
        write_geneval(tmp_path / "out", [picture(tag="x"), picture(seed=1)])


@pytest.mark.parametrize(
    ("scores", "error"),
    [
        ([ClipResult(0.5, 0.1, 0.2), ClipResult(0.5)], "halves must be scored for every picture"),
        ([ClipResult(0.5), ClipResult(0.5)], "halves of at least one prompt"),
        ([ClipResult(float("nan"), 0.1, 0.2)] * 2, "not JSON compliant"),
    ],
)
def test_clip_scores_that_make_no_mean_are_refused(picture, tmp_path, scores, error):
    pictures = [picture(seed=seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match=error):
        write_attend_and_excite(tmp_path / "out", pictures, dict(zip([p.path for p in pictures], scores, strict=True)))


ODD = [
    "/",
    "\\",
    "a/b",
    "a_b",
    " a ",
    "a.",
    ".",
    "..",
    "",
    "A",
    "a",
    "ﬁ",
    "fi",
    "é",
    "e\u0301",
    "CON",
    "nul.txt",
    "samples",
]
ODD += [
    "prompts.json",
    "prompts.jsonl",
    "a cat_000001",
    "00000",
    "x\ny",
    "\u2028",
    "\x85",
    "Thumbs.db",
    "a.png",
    "猫と犬" * 100,
]
ODD += ["a b " * 2500, "-", "~", "a:b", "clip_raw_metrics.json", "İ", "ß", "SS", "a\x00b", "😀"]
PROMPTS = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=20)), min_size=1, max_size=6, unique=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for number in range(len(ODD)):
        Image.fromarray(np.full((2, 3, 3), number, np.uint8)).save(folder / f"{number}.png")
    return folder


def contents(pictures) -> set:
    return {(p.prompt, p.prompt_id, p.seed, p.method, p.targets, decode(p.path).image.tobytes()) for p in pictures}


@pytest.mark.parametrize("write", [write_geneval, write_attend_and_excite])
@settings(max_examples=12)
@given(
    prompts=PROMPTS,
    seeds=st.lists(st.integers(0, 2**64), min_size=2, max_size=2, unique=True),
    targets=st.lists(st.text(max_size=5), max_size=3, unique=True).map(tuple),
)
@example(prompts=ODD, seeds=[0, 1], targets=())
def test_what_is_written_is_read_back(write, sources, prompts, seeds, targets):
    pictures = [
        Picture(sources / f"{number % len(ODD)}.png", prompt, seed, "ours", prompt, targets)
        for number, prompt in enumerate(prompts)
        for seed in seeds
    ]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "ours"), pictures)
        found = read_folder(Path(folder, "ours"))
        assert contents(found.pictures) == contents(pictures)
        assert len(found.pictures) == len(pictures)
        assert {problem.path for problem in found.problems} <= {found.root}
        names = [path.name for path in Path(folder, "ours").iterdir()]
        assert len({name.casefold() for name in names}) == len(names)


def test_a_folder_of_geneval_read_and_written_again_is_the_same(picture, tmp_path):
    facts = FACTS | {"prompt": "three cats", "mine": [1, None]}
    write_geneval(tmp_path / "a", [picture("three cats", 0, targets=("cat",), tag="counting", metadata=facts)])
    write_geneval(tmp_path / "b", read_folder(tmp_path / "a").pictures)
    for name in ("00000/metadata.jsonl", "00000/samples/00000.png", "prompts.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_folders_rights_are_those_of_any_new_folder(picture, tmp_path):
    (tmp_path / "usual").mkdir()
    write_geneval(tmp_path / "out", [picture()])
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode
