"""The sheet: blind, drawn as promised, never lost, and read back with its mistakes named."""

import csv
import io
import json
import re
from base64 import b64decode
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from analysis.audit import Judged, draw, make_audit
from analysis.labels import read_labels
from tracer.pictures import digest
from tracer.scenes import render, sample_scene
from tracer.scores import PictureRow, ProtocolRow, ReadingRow, ScoreRow, Written, add_protocols, write
from tracer.store import Store

READING, METHODS, SEED = "owl#12345678@0.40,argmax", ("plain", "regulation"), 987_654
PROMPTS, EACH = 6, 2  # images per prompt and method


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered scenes in files that name their maker, and a detector that finds all in every third image."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(3)
    pictures, scores = [], []
    for number in range(len(METHODS) * PROMPTS * EACH):
        method, prompt = METHODS[number % 2], number // 2 % PROMPTS
        scene = sample_scene(rng, count=2)
        image = Image.fromarray(render(scene))
        file = folder / method / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        text = PngImagePlugin.PngInfo()
        text.add_text("parameters", f"{method}, seed {SEED}")
        image.save(file, pnginfo=text, icc_profile=method.encode())
        targets = tuple(thing.word for thing in scene.things)
        sha256 = digest(image)
        row = PictureRow(f"{method}/{number}.png", method, f"prompt {prompt}", SEED + number, f"p{prompt}", targets)
        pictures.append(replace(row, image_sha256=sha256))
        for place, target in enumerate(targets):
            value = 0.9123 if place == 0 or number % 3 == 0 else 0.1123
            scores.append(
                ScoreRow(sha256, "owl#12345678", "detection_argmax", value, target, ", ".join(sorted(targets)))
            )
    with Store.create(folder / "scores.duckdb") as store:
        write(store, Written(scores, pictures=pictures))
        add_protocols(
            store,
            [ProtocolRow("owl#12345678", "DetectionProtocol", "emoji", {}, {})],
            [ReadingRow(READING, "owl#12345678", 0.4, "argmax")],
        )
    return folder


@pytest.fixture(scope="module")
def store(folder: Path):
    with Store.open(folder / "scores.duckdb") as store:
        yield store


@pytest.fixture
def sheet(store: Store, tmp_path: Path) -> Path:
    return make_audit(store, tmp_path / "audit", READING, images=10, seed=5)


def rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


def fill(sheet: Path, shown: dict[int, str]) -> None:
    """Write answers into labels.csv, by the number of its line."""
    lines = [f"{r['item']},{r['target']},{shown.get(i, '')}" for i, r in enumerate(rows(sheet / "labels.csv"))]
    (sheet / "labels.csv").write_text("\n".join(["item,target,shown", *lines]))


class Page(HTMLParser):
    """Collects what a page shows: its pictures and, for each, the targets in their order."""

    def __init__(self, text: str):
        super().__init__()
        self.images, self.targets, self.tags, self.links = [], [], Counter(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags[tag] += 1
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "srcset")]
        if tag == "article":
            self.targets.append([])
        if tag == "img":
            self.images.append(Image.open(io.BytesIO(b64decode(found["src"].split(",")[1]))))
        if "data-target" in found:
            self.targets[-1].append(found["data-target"])


def test_the_page_shows_the_pictures_that_the_items_name_with_the_targets_that_are_asked(sheet):
    page = Page((sheet / "index.html").read_text())
    assert [digest(image) for image in page.images] == [row["image_sha256"] for row in rows(sheet / "items.csv")]
    asked = [(str(i), name) for i, names in enumerate(page.targets, 1) for name in names]
    assert asked == [(row["item"], row["target"]) for row in rows(sheet / "labels.csv")]
    assert {row["shown"] for row in rows(sheet / "labels.csv")} == {""}
    assert page.tags["button"] == 3 * len(asked) + 4  # yes, no, cannot tell; back, next, next without answer, save


def test_nothing_is_fetched_from_anywhere(sheet):
    text = (sheet / "index.html").read_text()
    page = Page(text)
    assert len(page.links) == 10
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "link" not in page.tags
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", re.sub(r"base64,[^\"]+", "", text))


def test_the_page_is_blind(sheet, store):
    text = (sheet / "index.html").read_text()
    bare = re.sub(r"base64,[^\"]+", "", text).lower()
    known = store.sql("SELECT method, path, prompt, seed, image_sha256 FROM pictures")
    secrets = {str(value).lower() for column in known.columns for value in known[column]}
    secrets |= {sha[:8] for sha in known["image_sha256"]} | {Path(path).name for path in known["path"]}
    secrets |= {READING, "owl#", "0.91", "0.11", "complete", "detector", "verdict", "found", "seed", "method"}
    assert {secret for secret in secrets if secret in bare} == set()
    assert all(not image.info and not getattr(image, "text", {}) for image in Page(text).images)
    assert list(rows(sheet / "items.csv")[0]) == ["item", "image_sha256"]
    names = ["README.txt", "audit.json", "index.html", "items.csv", "labels.csv", "made-by.json"]
    assert sorted(path.name for path in sheet.iterdir()) == names


def test_the_order_of_pictures_and_targets_tells_nothing(store, tmp_path):
    with_all_found_first, first_target_first, drawn = 0, 0, 0
    verdicts = dict(store.sql("SELECT image_sha256, bool_and(found) FROM verdicts GROUP BY ALL").to_numpy().tolist())
    targets = {sha: list(names) for sha, names in store.sql("SELECT image_sha256, targets FROM pictures").to_numpy()}
    for seed in range(12):
        sheet = make_audit(store, tmp_path / str(seed), READING, images=8, seed=seed)
        shas = [row["image_sha256"] for row in rows(sheet / "items.csv")]
        with_all_found_first += sum(verdicts[sha] for sha in shas[:4])
        shown = Page((sheet / "index.html").read_text()).targets
        first_target_first += sum(names[0] == targets[sha][0] for names, sha in zip(shown, shas, strict=True))
        drawn += len(shas)
    # Half of 48 and of 96 are expected, with standard deviations of 2.6 (4 of 8, half of them complete) and 4.9.
    assert abs(with_all_found_first - 24) <= 12
    assert abs(first_target_first - drawn / 2) <= 20


def test_small_pictures_are_enlarged_by_whole_pixels(sheet):
    assert (sheet / "index.html").read_text().count('width="512" alt=') == 10  # 8 * 64
    assert (sheet / "index.html").read_text().count('class="enlarged"') == 10


def test_the_same_seed_makes_the_same_sheet_and_another_one_another(store, tmp_path):
    files = ("index.html", "labels.csv", "items.csv", "audit.json")
    one, same, other = (
        [(make_audit(store, tmp_path / name, READING, images=10, seed=seed) / file).read_bytes() for file in files]
        for name, seed in (("one", 5), ("same", 5), ("other", 6))
    )
    assert one == same
    assert one[2] != other[2]


def test_the_parameters_of_the_draw_are_kept_without_any_items_verdict(sheet):
    facts = json.loads((sheet / "audit.json").read_text())
    # 12 images a method; numbers divisible by 3 are complete: 0, 6, 12, 18 plain, 3, 9, 15, 21 regulated.
    sizes = {(method, complete): 4 if complete else 8 for method in METHODS for complete in (False, True)}
    assert {(one["method"], one["complete"]): one["images"] for one in facts["strata"]} == sizes
    assert sorted(one["drawn"] for one in facts["strata"]) == [2, 2, 3, 3]
    assert (facts["protocol"], facts["seed"], facts["pictures"], facts["images_drawn"]) == (READING, 5, 24, 10)
    assert set(facts) == {"protocol", "seed", "images_asked_for", "pictures", "images_drawn", "strata"}


def test_the_instructions_have_six_lines(sheet):
    assert len((sheet / "README.txt").read_text().splitlines()) == 6


def crowd(sizes: dict[tuple[str, bool], int], prompts: int) -> list[Judged]:
    """Return so many different images of each stratum, their prompts in turn."""
    return [
        Judged(f"{s}{i}", s[0], f"p{i % prompts}", f"{s}{i}", ("cat", "dog"), (True, s[1]))
        for s, n in sizes.items()
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("sizes", "images", "drawn"),
    [
        ({("a", True): 50, ("a", False): 50, ("b", True): 50, ("b", False): 50}, 40, [10, 10, 10, 10]),
        ({("a", True): 50, ("a", False): 4, ("b", True): 50, ("b", False): 4}, 40, [16, 4, 16, 4]),
        ({("a", True): 50, ("a", False): 50, ("b", True): 2, ("b", False): 50}, 40, [18, 10, 2, 10]),
        ({("a", True): 3, ("a", False): 5}, 40, [3, 5]),
        ({("a", True): 30}, 20, [20]),
    ],
)
def test_verdicts_are_drawn_by_halves_and_methods_evenly_as_far_as_there_are(sizes, images, drawn):
    chosen = draw(crowd(sizes, 10), images, np.random.default_rng(0))
    counts = Counter(picture.stratum for picture in chosen)
    assert [counts[stratum] for stratum in sizes] == drawn
    assert len({picture.path for picture in chosen}) == len(chosen)


def test_prompts_are_as_different_as_possible():
    sizes = {("a", True): 80, ("a", False): 80, ("b", True): 80, ("b", False): 80}
    for seed in range(5):
        chosen = draw(crowd(sizes, 40), 40, np.random.default_rng(seed))
        assert len({picture.prompt for picture in chosen}) == 40


def test_every_image_of_a_stratum_is_equally_likely_though_prompts_have_unequal_numbers():
    pictures = crowd({("a", True): 9, ("a", False): 9}, 1)
    pictures = [replace(p, prompt=f"p{min(i % 9, 4)}") for i, p in enumerate(pictures)]  # four alone, five together
    drawn = Counter(p.path for seed in range(400) for p in draw(pictures, 6, np.random.default_rng(seed)))
    # Each is drawn with chance 1/3: 133 of 400, with a standard deviation of 9.4.
    assert max(abs(drawn[picture.path] - 400 / 3) for picture in pictures) < 42


def test_an_image_that_two_methods_share_is_shown_once():
    pictures = crowd({("a", True): 10, ("a", False): 10}, 5)
    twins = [replace(picture, path=f"twin {picture.path}", method="b") for picture in pictures]
    chosen = draw(pictures + twins, 40, np.random.default_rng(0))
    assert sorted(picture.path for picture in chosen) == sorted(picture.path for picture in pictures)


def test_only_the_methods_asked_for_are_drawn(store, tmp_path):
    sheet = make_audit(store, tmp_path / "audit", READING, images=10, methods=["regulation"])
    mine = set(store.sql("SELECT image_sha256 FROM pictures WHERE method = 'regulation'")["image_sha256"])
    assert {row["image_sha256"] for row in rows(sheet / "items.csv")} <= mine


def test_a_sheet_with_answers_is_never_replaced_and_an_empty_one_is(store, sheet):
    make_audit(store, sheet, READING, images=4)
    assert len(rows(sheet / "items.csv")) == 4
    fill(sheet, {0: "yes"})
    (sheet / "labels.csv").rename(sheet / "annas.csv")
    with pytest.raises(ValueError, match=r"no labels that would be lost, got .*annas\.csv"):
        make_audit(store, sheet, READING, images=10)
    assert len(rows(sheet / "items.csv")) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol_name": "owl"}, "protocol_name must be one of owl#12345678@0.40,argmax, got 'owl'"),
        ({"images": 1}, "images must be at least 2"),
        ({"methods": ["plain", "magic"]}, "methods must have verdicts, got none of magic"),
    ],
)
def test_a_wrong_order_is_refused_and_nothing_is_written(store, tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_audit(store, tmp_path / "audit", **({"protocol_name": READING} | options))
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_was_changed_after_scoring_is_refused(folder, store, tmp_path):
    file = folder / "plain" / "0.png"
    before = file.read_bytes()
    Image.new("RGB", (64, 64)).save(file)
    with pytest.raises(ValueError, match=r"plain/0\.png must be the picture that was scored, got other pixels"):
        make_audit(store, tmp_path / "audit", READING, images=100)
    file.write_bytes(before)


def test_answers_come_back_as_they_were_written_also_from_a_file_elsewhere(sheet, tmp_path):
    fill(sheet, {0: "yes", 1: " No ", 5: "unsure"})
    labels = read_labels(sheet)
    lines, shas = rows(sheet / "labels.csv"), {row["item"]: row["image_sha256"] for row in rows(sheet / "items.csv")}
    said = {(row.item, row.target): row.shown for row in labels.rows}
    words = {0: "yes", 1: "no", 5: "unsure"}
    assert said == {(int(r["item"]), r["target"]): words.get(i, "") for i, r in enumerate(lines)}
    assert all(row.image_sha256 == shas[str(row.item)] for row in labels.rows)
    assert labels.protocol == READING
    elsewhere = tmp_path / "downloaded.csv"
    elsewhere.write_bytes(b"\xef\xbb\xbf" + (sheet / "labels.csv").read_bytes().replace(b"\n", b"\r\n"))  # as of Excel
    assert read_labels(elsewhere, sheet) == labels


def test_other_answers_have_another_fingerprint(sheet):
    fill(sheet, {0: "yes"})
    one, named = read_labels(sheet), read_labels(sheet, person="anna")
    fill(sheet, {0: "no"})
    assert re.fullmatch("person:somebody#[0-9a-f]{8}", one.fingerprint)
    assert named.fingerprint == one.fingerprint.replace("somebody", "anna")
    assert read_labels(sheet).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,target,shown\n11,cat,yes\n", "line 2: item must be one of items.csv, 1 to 10, got '11'"),
        ("item,target,shown\n1,cat,yes\n2,cat,maybe\n", "line 3: shown must be yes, no, unsure or empty, got 'maybe'"),
        ("item,target,shown\n1,cat,yes\n1,cat,no\n", "a target must be there once, got 'cat' of item 1 twice"),
        ("item,target,shown\n1,cat,\n", "must hold at least one answer in its column shown, got none"),
        ("item;target;shown\n1;cat;yes\n", "must begin with its columns, item first, parted by commas"),
    ],
)
def test_a_mistake_in_the_file_is_named(sheet, text, message):
    (sheet / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_labels(sheet)


def test_a_persons_name_may_not_break_the_fingerprint(sheet):
    fill(sheet, {0: "yes"})
    with pytest.raises(ValueError, match="person must be of letters"):
        read_labels(sheet, person="anna#1")
