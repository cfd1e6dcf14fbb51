import hashlib
import json
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from analysis.prompts import sources
from analysis.prompts.scenes import SEED, draw_scenes, scenes
from analysis.prompts.sets import PromptSet, attend_and_excite, known_sets, prompt_set
from analysis.prompts.sources import fetched, heads_of, own_cache, sampled_captions
from metrics.composition import queries_of
from regulate.layout import Layout
from regulate.method import Given
from regulate.nouns import PARSERS
from regulate.structure import Group
from tracer.prompts import Prompt, attend_and_excite_templates, load_prompts
from tracer.scenes import held_out_pairs, render
from tracer.words import place_of, targets_of

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the sets of others are not on this machine")
TWO = (Prompt("a", "a cat and a dog", ("cat", "dog"), "test"), Prompt("b", "a red car", ("car",), "test"))
LEFT = Layout.from_boxes({"a red car": (0.0, 0.0, 0.5, 1.0)}, (4, 4))
RIGHT = Layout.from_boxes({"a red car": (0.5, 0.0, 1.0, 1.0)}, (4, 4))
OFFICIAL = {
    "animals": ["a elephant and a rabbit"],
    "animals_objects": ["a cat with a glasses", "a dog and a orange apple"],
    "objects": ["a blue clock and a blue apple"],
}


@pytest.fixture
def file(tmp_path):
    def write(name: str, content: object) -> Path:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def served():
    """A server on this machine that answers with what the test puts there, and counts how often it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content, promised = answers.get(self.path, (None, 0))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    answers: dict[str, tuple[bytes, int]] = {}
    asked: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_named_set_is_listed_for_a_name_that_is_none():
    with pytest.raises(ValueError, match=r"must be a file, or one of attend-and-excite-templates, .*, got 'coco'"):
        prompt_set("coco")
    assert len(known_sets()) == 8


def test_an_option_that_a_set_does_not_have_and_one_that_it_lacks_are_named():
    with pytest.raises(ValueError, match="options of 'emoji-layouts' are count, seed, got size"):
        prompt_set("emoji-layouts", size=3)
    with pytest.raises(ValueError, match="'coco-layouts' must be given descriptions=, images="):
        prompt_set("coco-layouts")


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        ((), "must hold at least one prompt, got none"),
        ((TWO[0], replace(TWO[0], id="c")), "every text once, got again: 'a cat and a dog'"),
        ((TWO[0], replace(TWO[1], id="a")), "every id once, got again: 'a'"),
        ((replace(TWO[0], targets=("cow",)),), "prompt 'a', 'a cat and a dog': target 'cow' is not in the prompt"),
        ((replace(TWO[0], targets=("ca",)),), "target 'ca' is not in the prompt"),
        ((replace(TWO[0], targets=("cat", "Cat")),), "a target must be named once, got 'Cat' again"),
    ],
)
def test_what_is_no_prompt_set_is_refused_with_the_prompt(prompts, error):
    with pytest.raises(ValueError, match=error):
        PromptSet("test", "Test", prompts)


@pytest.mark.parametrize("what", [{"given": {"a cow": Given()}}, {"tags": {"a cow": "x"}}, {"metadata": {"a cow": {}}}])
def test_a_set_speaks_of_its_own_prompts_alone(what):
    with pytest.raises(ValueError, match="must speak of its own prompts, got 'a cow'"):
        PromptSet("test", "Test", TWO, **what)


WORDS = st.lists(st.sampled_from(["cat", "dog", "car", "bowl"]), min_size=1, max_size=3, unique=True)


@st.composite
def sets(draw) -> PromptSet:
    chosen = draw(st.lists(WORDS, min_size=1, max_size=4, unique_by=tuple))
    prompts = tuple(Prompt(f"{n}", " and ".join(words), tuple(words), "test") for n, words in enumerate(chosen))
    return PromptSet("test", "Test", prompts, tags={prompts[0].text: "x"}, metadata={prompts[0].text: {"count": 1}})


@given(sets(), st.data())
def test_any_change_of_what_a_model_or_a_judge_is_told_changes_the_digest(one, data):
    place = data.draw(st.integers(0, len(one.prompts) - 1))
    prompt = one.prompts[place]
    other_text = replace(prompt, text=f"{prompt.text} here")
    renamed = {prompt.text: other_text.text}
    moved = [{renamed.get(text, text): about for text, about in known.items()} for known in (one.tags, one.metadata)]
    others = [
        replace(one, prompts=put(one, place, replace(prompt, targets=prompt.targets[1:]))),
        replace(one, prompts=put(one, place, replace(prompt, id="new"))),
        replace(one, prompts=put(one, place, other_text), tags=moved[0], metadata=moved[1]),
        replace(one, tags={**one.tags, prompt.text: "y"}),
        replace(one, metadata={**one.metadata, prompt.text: {"count": 2}}),
        replace(one, given={prompt.text: Given((Group("cat"),))}),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 7


def put(one: PromptSet, place: int, prompt: Prompt) -> tuple[Prompt, ...]:
    return (*one.prompts[:place], prompt, *one.prompts[place + 1 :])


@given(sets(), st.data())
def test_the_order_of_prompts_and_what_people_read_do_not_change_the_digest(one, data):
    shuffled = tuple(data.draw(st.permutations(one.prompts)))
    told = {"name": "other", "title": "Other", "source": "elsewhere", "notes": ("note",)}
    assert replace(one, prompts=shuffled, **told).digest == one.digest
    assert replace(one, given={prompt.text: Given() for prompt in one.prompts}).digest == one.digest


def test_another_layout_of_the_same_phrases_changes_the_digest():
    digests = {PromptSet("x", "X", TWO, {"a red car": Given(layout=layout)}).digest for layout in (LEFT, RIGHT)}
    assert len(digests) == 2


def test_the_templates_are_the_shipped_file_and_another_seed_draws_other_colours():
    own, other = prompt_set("attend-and-excite-templates"), prompt_set("attend-and-excite-templates", colour_seed=7)
    assert own.prompts == load_prompts("attend-and-excite-templates")
    assert (own.title, other.title) == ("A&E-style (276)", "A&E-style (276, colours 7)")
    assert [p.targets for p in own.prompts] == [p.targets for p in other.prompts]
    assert sum(a.text != b.text for a, b in zip(own.prompts, other.prompts, strict=True)) > 100
    assert own.digest != other.digest
    assert own.tags["a cat with a crown"] == "animals_objects"
    assert prompt_set("attend-and-excite-templates", title="Mine").title == "Mine"


@pytest.mark.parametrize("name", ["prompts.json", "a.e_prompts.txt"])
def test_the_official_list_is_read_as_it_is_with_its_articles(file, name):
    found = prompt_set(file(name, OFFICIAL))
    assert found.title == "A&E"
    assert [(p.id, p.text, p.targets) for p in found.prompts] == [
        ("animals-000", "a elephant and a rabbit", ("elephant", "rabbit")),
        ("animals_objects-000", "a cat with a glasses", ("cat", "glasses")),
        ("animals_objects-001", "a dog and a orange apple", ("dog", "apple")),
        ("objects-000", "a blue clock and a blue apple", ("clock", "apple")),
    ]
    counts = "{'animals': 1, 'animals_objects': 2, 'objects': 1}"
    assert found.notes == (
        f"the official list has {{'animals': 66, 'animals_objects': 144, 'objects': 66}}, this one {counts}",
    )


def test_a_prompt_that_is_not_of_the_benchmarks_templates_is_refused_with_its_place(file):
    wrong = file("wrong.json", OFFICIAL | {"objects": ["a blue clock and a blue apple", "two clocks"]})
    with pytest.raises(ValueError, match=r"wrong.json, objects, 1: must be a text such as .*, got 'two clocks'"):
        prompt_set("attend-and-excite", path=wrong)


def test_a_file_with_another_checksum_than_asked_for_is_refused(file):
    with pytest.raises(ValueError, match=f"must have the SHA-256 {'0' * 64}, got"):
        attend_and_excite(file("prompts.json", OFFICIAL), sha256="0" * 64)


def test_without_file_and_checksum_the_official_list_is_not_fetched():
    with pytest.raises(
        ValueError, match=r"must be given path=, a copy of https://github.com/.*, or the copy's sha256="
    ):
        prompt_set("attend-and-excite")


@needs_shared
def test_a_copy_of_the_whole_benchmark_is_read_and_its_mended_articles_are_noted():
    found = prompt_set(SHARED / "attend-and-excite-prompts.json")
    assert len(found.prompts) == 276
    assert found.notes == ("42 texts have 'an', which the official list never has",)
    ours = prompt_set("attend-and-excite-templates")
    assert {frozenset(p.targets) for p in found.prompts} == {frozenset(p.targets) for p in ours.prompts}
    assert len({p.text for p in found.prompts} & {p.text for p in ours.prompts}) >= 80


def test_a_list_is_fetched_once_checked_and_kept_whole(served, tmp_path):
    address, answers, asked = served
    content = json.dumps(OFFICIAL).encode()
    answers["/list.txt"] = (content, len(content))
    known = {"sha256": hashlib.sha256(content).hexdigest().upper(), "url": f"{address}/list.txt", "cache": tmp_path}
    first, second = (prompt_set("attend-and-excite", **known) for _ in range(2))
    assert first == second
    assert asked == ["/list.txt"]
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == content
    kept.write_bytes(b"{}")  # a file that was changed is fetched again
    assert prompt_set("attend-and-excite", **known) == first
    assert asked == ["/list.txt"] * 2


def test_nothing_is_kept_of_what_is_not_what_was_asked_for(served, tmp_path, monkeypatch):
    address, answers, _ = served
    content = json.dumps(OFFICIAL).encode()
    right, cache = hashlib.sha256(content).hexdigest(), tmp_path / "cache"
    answers |= {"/other": (b"other", 5), "/cut": (content[:40], len(content)), "/long": (content, len(content))}
    with pytest.raises(ValueError, match=f"must have the SHA-256 {right}, got"):
        fetched(f"{address}/other", right, cache)
    with pytest.raises((FileNotFoundError, ValueError), match=f"{address}/cut"):
        fetched(f"{address}/cut", right, cache)
    with pytest.raises(
        FileNotFoundError, match=r"could not be fetched: HTTP Error 404: Not Found.*give the file as path="
    ):
        fetched(f"{address}/none", right, cache)
    monkeypatch.setattr(sources, "MOST_BYTES", len(content) - 1)
    with pytest.raises(ValueError, match=f"at most {len(content) - 1} bytes, got more"):
        fetched(f"{address}/long", right, cache)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("url", "sha256", "error"),
    [("file:///etc/hostname", "0" * 64, "url must begin with http"), ("http://x/y", "12", "must be 64 hexadecimal")],
)
def test_other_addresses_and_checksums_are_refused_before_anything_is_asked(url, sha256, error):
    with pytest.raises(ValueError, match=error):
        fetched(url, sha256)


def test_the_cache_is_where_the_user_has_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert own_cache() == tmp_path / "attnreg" / "prompts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert own_cache() == Path.home() / ".cache" / "attnreg" / "prompts"


@pytest.mark.parametrize(
    ("caption", "phrases", "heads"),
    [
        ("An orange cat taking a nap on top of a car.", ["", "top of a car", "An orange cat taking a nap"], "cat car"),
        ("A fork rests on a plate next to a piece of cake.", ["a piece of cake", "A fork"], "fork cake"),
        ("A grey and black cat on a blue suitcase.", ["a blue suitcase", "A grey and black cat"], "cat suitcase"),
        ("A black and white dog sits by a bowl of food", ["A black and white dog", "a bowl of food"], "dog bowl"),
        ("A dog on a leash is next to a fire hydrant.", ["a fire hydrant", "A dog on a leash"], "dog hydrant"),
        ("A cat near a white cat", ["a white cat", "A cat"], "cat cat#2"),
        ("A cat near a cat", ["a cat", "a cat"], "cat cat#2"),
        ("a photo of a lot of things", ["a photo of"], "photo"),
    ],
)
def test_the_head_of_a_description_is_the_thing_that_it_describes(caption, phrases, heads):
    assert heads_of(caption, phrases) == tuple(heads.split())


def test_a_description_without_a_thing_or_that_is_not_in_its_caption_is_refused():
    with pytest.raises(ValueError, match="phrase 'a cow' must stand in the prompt, got 'a cat'"):
        heads_of("a cat", ["a cow"])
    with pytest.raises(ValueError, match="must hold a word that names a thing, got 'on the'"):
        heads_of("a cat on the mat", ["on the"])


@needs_shared
def test_densediffusions_set_has_layouts_and_the_heads_of_what_they_show():
    paths = {"descriptions": "dense-diffusion-coco250.json", "images": "dense-diffusion-layouts.tar.gz"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is left out is noted, not warned of
        found = prompt_set("coco-layouts", **{name: str(SHARED / path) for name, path in paths.items()})
    assert (found.title, len(found.prompts)) == ("COCO", 249)
    assert "item 57 is left out" in found.notes[1]
    assert "coco-057" not in {prompt.id for prompt in found.prompts}
    for prompt in found.prompts:
        layout = found.given[prompt.text].layout
        assert layout is not None
        assert len(prompt.targets) == sum(bool(phrase) for phrase in layout.phrases)
    heads = [target for prompt in found.prompts for target in prompt.targets]
    assert (heads.count("cat"), heads.count("dog"), heads.count("bench")) == (81, 69, 30)


def coco(captions: dict[int, list[str]]) -> dict[str, list]:
    entries = [(image, text) for image, own in captions.items() for text in own]
    return {
        "images": [{"id": image, "file_name": f"{image:012}.jpg", "license": 1} for image in captions],
        "annotations": [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(entries)],
    }


MANY = coco({7 * n + 1: [f"a cat number {n}", f"a dog  number {n}\n", "a photo"] for n in range(40)})


@settings(max_examples=30)
@given(st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_a_sample_depends_on_its_seed_and_not_on_the_order_of_the_file(random, seed):
    shuffled = {part: random.sample(entries, len(entries)) for part, entries in MANY.items()}
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("one.json", "two.json")]
        for path, content in zip(paths, (MANY, shuffled), strict=True):
            path.write_text(json.dumps(content))
        one, two = (sampled_captions(path, 20, seed) for path in paths)
        assert one == two
        assert set(sampled_captions(paths[0], 5, seed)) < set(one)


def test_a_sample_of_captions_has_one_a_photograph_all_different_by_image_id(file):
    path = file("captions.json", MANY)
    found = prompt_set(path, count=30, seed=3)
    assert found.name == "coco-captions-30"
    ids = [prompt.id for prompt in found.prompts]
    assert ids == sorted(set(ids))
    assert len(ids) == 30
    for prompt in found.prompts:
        image, text = int(prompt.id), prompt.text
        assert found.metadata[text] == {"file": f"{image:012}.jpg", "image_id": image}
        assert text in ("a photo", f"a cat number {image // 7}", f"a dog number {image // 7}")
    assert found.notes == ("30 of 30 prompts have no targets: detection leaves them out",)
    assert found.digest != prompt_set(path, count=30, seed=4).digest


def test_every_photograph_and_every_caption_is_drawn_about_as_often_as_any_other(file):
    path = file("captions.json", coco({n: [f"a {n}", f"b {n}"] for n in range(10)}))
    drawn = [one for seed in range(400) for one in sampled_captions(path, 3, seed)]
    by_image = np.bincount([one.image_id for one in drawn], minlength=10)
    assert by_image.sum() == 1200
    assert abs(by_image - 120).max() < 46  # five standard deviations
    assert abs(sum(one.caption.startswith("a") for one in drawn) - 600) < 87


def test_photographs_with_nothing_else_to_say_are_passed_over_and_too_many_are_refused(file):
    path = file("captions.json", coco({1: ["A cat"], 2: ["a  cat"], 3: ["a dog"], 4: [" "]}))
    assert len(sampled_captions(path, 2, 0)) == 2
    with pytest.raises(ValueError, match=r"count must be at most 2, .*got 3"):
        sampled_captions(path, 3, 0)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"images": [{"id": 1, "file_name": "a"}] * 2}, "images, 1: an id must be unique, got 1 again"),
        ({"images": [{"id": 1}]}, "images, 0: must have id .int., file_name .str., got"),
        ({"images": []}, "annotations, 0: image_id must be one of the images, got 1"),
        ({"annotations": [{"id": 1, "image_id": 1, "caption": None}]}, "annotations, 0: must have id"),
        ({"annotations": {}}, "must be a JSON object of the lists images, annotations"),
    ],
)
def test_a_captions_file_of_another_form_is_refused_with_the_place(file, change, error):
    with pytest.raises(ValueError, match=error):
        prompt_set("coco-captions", path=file("captions.json", coco({1: ["a cat"]}) | change))


def test_json_of_another_form_is_refused_with_what_is_known(file):
    with pytest.raises(ValueError, match="must be Attend-and-Excite's prompts or COCO's captions"):
        prompt_set(file("other.json", {"prompts": []}))


GENEVAL = [
    {"tag": "counting", "include": [{"class": "bus", "count": 3}], "prompt": "a photo of three buses"},
    {"tag": "colors", "include": [{"class": "cell phone", "count": 1, "color": "red"}, {"class": "dog", "count": 1}],
     "prompt": "a photo of a red cell phone and a dog"},
]  # fmt: skip


def test_genevals_records_are_kept_whole_and_their_classes_are_found_in_the_prompts(file):
    found = prompt_set(file("evaluation_metadata.jsonl", "\n".join(map(json.dumps, GENEVAL))))
    assert [(p.id, p.targets) for p in found.prompts] == [("00000", ("buses",)), ("00001", ("cell phone", "dog"))]
    assert [found.tags[p.text] for p in found.prompts] == ["counting", "colors"]
    assert [found.metadata[p.text] for p in found.prompts] == GENEVAL
    assert queries_of(found.metadata["a photo of three buses"]) == ["bus"]
    assert found.notes == ("1 prompts name a target in the plural; it is written as they do",)


def test_a_class_that_a_prompt_does_not_name_is_refused(file):
    wrong = GENEVAL[0] | {"include": [{"class": "mouse", "count": 3}]}
    with pytest.raises(
        ValueError, match="prompt '00000', 'a photo of three buses': target 'mouse' is not in the prompt"
    ):
        prompt_set("geneval", path=file("prompts.jsonl", json.dumps(wrong)))


def test_t2i_compbenchs_prompts_have_the_kind_as_tag_and_targets_if_asked_for(file):
    path = file("3d_spatial_val.txt", "a dog in front of a desk\na cat and a dog\n")
    plain = prompt_set("t2i-compbench", path=path)
    assert (plain.name, plain.title) == ("t2i-compbench-3d-spatial", "T2I-CompBench, 3d spatial (2)")
    assert [(p.id, p.targets) for p in plain.prompts] == [("3d_spatial-000", ()), ("3d_spatial-001", ())]
    assert set(plain.tags.values()) == {"3d_spatial"}
    named = prompt_set("t2i-compbench", path=path, targets="auto", parser="rule")
    assert [p.targets for p in named.prompts] == [("dog", "desk"), ("cat", "dog")]
    assert named.notes == ("targets that the source does not name were found by a plain rule that knows no grammar",)


def test_a_users_file_keeps_what_it_says_and_gives_an_id_that_stays(file):
    path = file("mine.csv", "prompt,targets,tag,count\na cat on a mat,cat,easy,1\nA cat & a dog!,,,\n")
    found = prompt_set(path)
    assert [(p.text, p.targets) for p in found.prompts] == [("a cat on a mat", ("cat",)), ("A cat & a dog!", ())]
    assert found.tags == {"a cat on a mat": "easy"}
    assert found.metadata == {"a cat on a mat": {"count": "1"}}
    turned = prompt_set(file("turned.csv", "prompt,targets,tag,count\nA cat & a dog!,,,\na cat on a mat,cat,easy,1\n"))
    assert turned.digest == found.digest
    assert found.prompts[1].id.startswith("a-cat-a-dog-")
    assert [p.targets for p in prompt_set(path, targets="auto", parser="rule").prompts] == [("cat",), ("cat", "dog")]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("twice.txt", "a cat\na dog\na cat\n", "twice.txt must hold every prompt once, got again: 'a cat'"),
        ("twice.csv", "prompt\na cat\na cat\n", "every prompt once, got again: 'a cat'"),
        ("twice.jsonl", '{"text": "a cat"}\n{"prompt": "a cat"}', "every prompt once, got again: 'a cat'"),
        ("empty.txt", "\n", "at least one prompt, got none"),
        ("seed.csv", "prompt,seed\na cat,1\n", "seed.csv, line 2: a prompt must have no seed"),
        ("target.csv", "prompt,targets\na cat,dog\n", "'a cat': target 'dog' is not in the prompt"),
        ("prompts.yaml", "a cat", "prompts must be a file of .jsonl, .csv, .txt"),
    ],
)
def test_a_users_file_that_is_no_set_is_refused_with_what_is_wrong(file, name, text, error):
    with pytest.raises(ValueError, match=error):
        prompt_set(file(name, text))


@pytest.mark.parametrize(
    ("options", "error"),
    [({"targets": "nouns"}, "one of given, auto, got 'nouns'"), ({"parser": "x"}, f"one of {', '.join(PARSERS)}, got")],
)
def test_an_unknown_way_to_targets_is_refused(file, options, error):
    with pytest.raises(ValueError, match=error):
        prompt_set(file("mine.txt", "a cat"), **options)


def test_the_emoji_worlds_set_has_layouts_of_its_targets_and_fits_its_model(emoji_tokenizer):
    found = prompt_set("emoji-layouts")
    assert len(found.prompts) == 250
    assert sum(len(prompt.targets) == 3 for prompt in found.prompts) == 7
    assert not {p.text for p in found.prompts} & {p.text for p in attend_and_excite_templates()}
    for prompt in found.prompts:
        layout = found.given[prompt.text].layout
        assert layout is not None
        things = [phrase.split()[-1] for phrase in layout.phrases if phrase]
        assert tuple(things) == prompt.targets
        assert len(targets_of(emoji_tokenizer, prompt.text, prompt.targets)) == len(things)
        pairs = {frozenset((a, b)) for a in things for b in things if a != b}
        assert found.metadata[prompt.text] == {"seen": not pairs & held_out_pairs()}
    assert set(found.tags.values()) == {"animals", "animals_objects", "objects", "three"}
    assert found.tags[next(p.text for p in found.prompts if p.targets == ("bear", "apple"))] == "animals_objects"


def test_a_smaller_emoji_set_is_the_beginning_of_a_larger_one_and_another_seed_draws_another():
    small, large = (prompt_set("emoji-layouts", count=count, seed=5) for count in (20, 40))
    assert large.prompts[:20] == small.prompts
    assert all(large.given[prompt.text] == small.given[prompt.text] for prompt in small.prompts)
    assert prompt_set("emoji-layouts", count=20, seed=5).digest == small.digest
    assert prompt_set("emoji-layouts", count=20, seed=6).digest != small.digest
    with pytest.raises(ValueError, match="count must be 1 to 5000 and seed 0 or more, got 0 and 5"):
        prompt_set("emoji-layouts", count=0, seed=5)


def test_targets_stand_in_their_prompts_in_order():
    for prompt in (*prompt_set("attend-and-excite-templates").prompts, *prompt_set("emoji-layouts", count=40).prompts):
        places = [place_of(prompt.text, target) for target in prompt.targets]
        assert places == sorted(places)


def test_the_emoji_worlds_scenes_are_captions_of_pictures_that_can_be_drawn(tmp_path):
    made = prompt_set("emoji-scenes", count=40)
    draw_scenes(tmp_path, count=40)
    assert len(made.prompts) == 40
    assert prompt_set("emoji-scenes", count=20).prompts == made.prompts[:20]
    drawn = scenes(40, SEED)
    for prompt in made.prompts:
        picture = np.asarray(Image.open(tmp_path / made.metadata[prompt.text]["file"]))
        assert np.array_equal(picture, render(drawn[prompt.text]))
        assert prompt.targets == tuple(thing.word for thing in drawn[prompt.text].things)
    before = (tmp_path / "scene-00003.png").stat().st_mtime_ns
    draw_scenes(tmp_path, count=40)
    assert (tmp_path / "scene-00003.png").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="count must be from 1 to 10,000, got 0"):
        prompt_set("emoji-scenes", count=0)


def test_two_may_draw_scenes_into_one_folder_at_the_same_time(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        for drawing in [pool.submit(draw_scenes, tmp_path, 60) for _ in range(4)]:
            drawing.result()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"scene-{number:05}.png" for number in range(60)]
