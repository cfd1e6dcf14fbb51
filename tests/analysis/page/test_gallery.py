"""The gallery's rows and entries: one place for every image, in an order that a reader expects."""

from pathlib import Path

import pytest

from analysis.page.gallery import Entry, Gallery, Verdict, entries_of
from tracer.scores import PictureRow, ProtocolRow, ReadingRow, ScoreRow, Written, add_protocols, write
from tracer.store import Store

READING = "owl@0.40,argmax"


def entry(prompt: str = "a cat", seed: int | None = 0, method: str = "plain", prompt_set: str = "COCO") -> Entry:
    return Entry(prompt_set, prompt, prompt, "", seed, method, Path("0.png"))


def test_rows_follow_sets_and_prompts_as_they_come_then_the_seed():
    entries = (
        entry("a dog", 10), entry("a dog", 9), entry("a cat", 9, prompt_set="A&E"), entry("a bird", 3),
        entry("a dog", 9, "ours"), entry("a dog", None),
    )  # fmt: skip
    rows = Gallery(entries, ("plain", "ours")).rows()
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("COCO", "a dog", None), ("COCO", "a dog", 9), ("COCO", "a dog", 10), ("COCO", "a bird", 3),
        ("A&E", "a cat", 9),
    ]  # fmt: skip
    assert [list(images) for images in rows.values()] == [["plain"], ["plain", "ours"], ["plain"], ["plain"], ["plain"]]


def test_a_gallery_without_images_is_refused():
    with pytest.raises(ValueError, match="at least one image, got none"):
        Gallery((), ("plain",))


@pytest.mark.parametrize("methods", [("plain",), ("ours",)])
def test_a_method_that_is_not_listed_is_refused(methods: tuple[str, ...]):
    with pytest.raises(ValueError, match="must name all methods"):
        Gallery((entry(method="ours"),), methods)


def test_two_images_of_one_place_are_refused():
    with pytest.raises(ValueError, match="one image of a place, got two of plain"):
        Gallery((entry(), entry(seed=1), entry()), ("plain",))


def test_the_pictures_of_a_store_become_entries_with_the_verdicts_of_one_reading(tmp_path: Path):
    asked = ("dog", "cat")
    scores = [ScoreRow("a1", "owl", "detection_argmax", 0.6, "cat", "cat, dog", "a cat", (1.0, 2.0, 3.0, 4.0)),
              ScoreRow("a1", "owl", "detection_argmax", 0.2, "dog", "cat, dog"),
              ScoreRow("a1", "owl", "detection_argmax", 0.9, "bird", "bird")]  # fmt: skip
    pictures = [
        PictureRow("plain/x/0.png", "plain", "a dog and a cat", 0, "p1", asked, "animals", image_sha256="a1"),
        PictureRow("plain/x/1.png", "plain", "a dog and a cat", 1, "p1", asked, "animals", image_sha256="b2"),
        PictureRow("plain/x/2.png", "plain", "a dog and a cat", 2, "p1", asked, "animals", error="truncated"),
        PictureRow("ours/x/0.png", "ours", "a dog and a cat", 0, "p1", asked, "animals", image_sha256="a1"),
    ]
    with Store.create(tmp_path / "scores.duckdb") as store:
        write(store, Written(scores, pictures=pictures))
        readings = [ReadingRow(READING, "owl", 0.4, "argmax"), ReadingRow("owl@0.80,argmax", "owl", 0.8, "argmax")]
        add_protocols(store, [ProtocolRow("owl", "DetectionProtocol", "emoji", {}, {})], readings)
        found = entries_of(store, READING, "COCO", ["plain"])
    cat, dog = Verdict("cat", True, 0.6, (1.0, 2.0, 3.0, 4.0)), Verdict("dog", False, 0.2)
    folder = tmp_path / "plain" / "x"
    assert found == [
        Entry("COCO", "p1", "a dog and a cat", "animals", 0, "plain", folder / "0.png", (dog, cat)),
        Entry("COCO", "p1", "a dog and a cat", "animals", 1, "plain", folder / "1.png"),
    ]
