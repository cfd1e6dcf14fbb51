"""Composition: GenEval's rules on boxes, worked out by hand, and on scenes whose content is known."""

from dataclasses import replace
from typing import cast

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from metrics.clip_score import Clip, Preprocess, embed_images, embed_texts
from metrics.composition import (
    COLOURS,
    EMOJI_TASKS,
    RELATIONS,
    TASKS,
    TaskProtocol,
    clip_colours,
    judge,
    queries_of,
    relations,
    things_of,
)
from metrics.detection import Boxes, look
from metrics.protocols import ClipProtocol
from metrics.weights import load_detector
from tracer.scenes import ANIMALS, OBJECTS, Scene, place, render, sample_words
from tracer.scenes import COLOURS as PALETTE

NOUNS = ANIMALS + OBJECTS
Entry = tuple[str, float, tuple[float, float, float, float]]


def constructed(*entries: Entry, names: tuple[str, ...] = ("cat", "dog")) -> Boxes:
    """Boxes of one name each: its score, all other names far below it."""
    scores = torch.full((len(entries), len(names)), 0.001)
    for row, (name, score, _) in enumerate(entries):
        scores[row, names.index(name)] = score
    corners = torch.tensor([box for *_, box in entries]).reshape(-1, 4)
    return Boxes(names, tuple(f"a photo of a {name}" for name in names), scores.logit(), corners.float())


def at(left: float, top: float, side: float = 10) -> tuple[float, float, float, float]:
    return (float(left), float(top), float(left + side), float(top + side))


def asks(tag: str, *include: dict, exclude: tuple[dict, ...] = ()) -> dict:
    return {"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": "as it says"}


def one(name: str, **more: object) -> dict:
    return {"class": name, "count": 1} | more


TWO_CATS = asks("counting", {"class": "cat", "count": 2}, exclude=({"class": "cat", "count": 3},))


def test_every_task_has_a_name_that_is_not_genevals():
    assert set(TASKS) == {"single_object", "two_object", "counting", "colors", "color_attr", "position"}
    assert all(name.startswith("owl-") for name in TASKS.values())


def test_the_detector_is_asked_for_each_name_once():
    assert queries_of(TWO_CATS) == ["cat"]
    assert queries_of(asks("two_object", one("dog"), one("cat"), exclude=(one("frog"),))) == ["dog", "cat", "frog"]


def test_two_objects_need_both():
    record = asks("two_object", one("cat"), one("dog"))
    assert judge(record, constructed(("cat", 0.8, at(0, 0)), ("dog", 0.7, at(30, 0)))).correct
    verdict = judge(record, constructed(("cat", 0.8, at(0, 0)), ("dog", 0.05, at(30, 0))))
    assert (verdict.task, verdict.correct) == ("owl-two-object", False)
    assert verdict.reason == "expected dog>=1, found 0"
    assert verdict.boxes == {"cat": [at(0, 0)], "dog": []}


def test_a_box_belongs_to_the_name_that_fits_it_best():
    hybrid = Boxes(("cat", "dog"), ("", ""), torch.tensor([[0.6, 0.5]]).logit(), torch.tensor([at(0, 0)]))
    verdict = judge(asks("two_object", one("cat"), one("dog")), hybrid)
    assert verdict.boxes == {"cat": [at(0, 0)], "dog": []}


@pytest.mark.parametrize(("cats", "reason"), [
    (1, "expected cat>=2, found 1"), (2, ""), (3, "expected cat<3, found 3"),
])  # fmt: skip
def test_a_count_is_neither_missed_nor_passed(cats, reason):
    verdict = judge(TWO_CATS, constructed(*(("cat", 0.9, at(15 * i, 0)) for i in range(cats))))
    assert (verdict.task, verdict.correct, verdict.reason) == ("owl-count", not reason, reason)


def test_counting_has_a_threshold_of_its_own():
    boxes = constructed(("cat", 0.9, at(0, 0)), ("cat", 0.3, at(30, 0)))
    protocol = TaskProtocol(threshold=0.1, counting_threshold=0.4)
    assert not judge(TWO_CATS, boxes, protocol).correct
    assert judge(TWO_CATS | {"tag": "two_object"}, boxes, protocol).correct


def test_boxes_of_one_thing_count_once():
    # 10x10 boxes 2 apart: common area 80, union 120, IoU 2/3; 4 apart: 60 of 140, IoU 3/7
    boxes = constructed(("cat", 0.8, at(2, 0)), ("cat", 0.9, at(0, 0)), ("cat", 0.7, at(-4, 0)))
    assert things_of(boxes, "cat", 0.1, TaskProtocol(overlap=0.5)) == [at(0, 0), at(-4, 0)]
    assert things_of(boxes, "cat", 0.1, TaskProtocol(overlap=0.7)) == [at(0, 0), at(2, 0), at(-4, 0)]
    assert things_of(boxes, "cat", 0.1, TaskProtocol(overlap=0.4)) == [at(0, 0)]


def test_things_are_limited_after_their_boxes_are_thinned():
    twins = [("cat", 0.9 - 0.01 * i, at(0.1 * i, 0)) for i in range(5)]
    boxes = constructed(*twins, ("cat", 0.5, at(30, 0)), ("cat", 0.4, at(45, 0)))
    assert things_of(boxes, "cat", 0.1, TaskProtocol(most=2)) == [at(0, 0), at(30, 0)]


@pytest.mark.parametrize(("box", "expected"), [
    (at(-30, 0), {"left of"}),
    (at(30, 0), {"right of"}),
    (at(0, -30), {"above"}),
    (at(0, 30), {"below"}),
    (at(30, 30), {"right of", "below"}),
    (at(0, 0), set()),
    (at(1.9, 0), set()),   # margin .1 of 10 + 10 is 2
    (at(3, 0), set()),     # 1 of 3 beyond it: a third, not more than half
    (at(4.1, 0), {"right of"}),  # 2.1 of 4.1
    (at(30, 10), {"right of"}),  # down 8 of 31.6
])  # fmt: skip
def test_where_a_thing_stands(box, expected):
    assert relations(box, at(0, 0), 0.1) == expected


def test_a_margin_counts_both_things_sides():
    wide = (-10.0, 0.0, 30.0, 10.0)  # centre 10, width 40
    assert relations(at(15, 0), wide, 0.11) == set()  # offset 10, margin 5.5: 4.5 of 10 are left
    assert relations(at(15, 0), wide, 0.09) == {"right of"}  # 5.5 of 10


def position(relation: str) -> dict:
    return asks("position", one("dog"), one("cat", position=[relation, 0]))


def test_a_position_is_that_of_the_second_thing_to_the_first():
    boxes = constructed(("cat", 0.8, at(0, 0)), ("dog", 0.7, at(40, 0)))
    assert [relation for relation in RELATIONS if judge(position(relation), boxes).correct] == ["left of"]
    assert judge(position("above"), boxes).reason == "expected cat above target, found left of target"


def test_only_the_surest_things_are_placed():
    boxes = constructed(("cat", 0.8, at(0, 0)), ("dog", 0.7, at(40, 0)), ("cat", 0.6, at(80, 0)))
    assert judge(position("left of"), boxes).correct
    assert not judge(position("right of"), boxes).correct


def test_without_the_target_there_is_no_position():
    verdict = judge(position("left of"), constructed(("cat", 0.8, at(0, 0))))
    assert verdict.reason == "expected dog>=1, found 0; no target for cat to be left of"


def painted(*patches: tuple[str, tuple[float, float, float, float]]) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    for colour, box in patches:
        left, top, right, bottom = (int(side) for side in box)
        image.paste(colour, (left, top, right, bottom))
    return image


def by_centre(crop: Image.Image, obj: str) -> str:
    known = {(255, 0, 0): "red", (0, 0, 255): "blue", (255, 255, 255): "white"}
    return known[crop.getpixel((crop.width // 2, crop.height // 2))]  # pyright: ignore[reportArgumentType]


def test_a_colour_is_read_off_the_things_own_box():
    boxes = constructed(("cat", 0.8, at(0, 0)), ("dog", 0.7, at(40, 40)))
    image = painted(("red", at(0, 0)), ("blue", at(40, 40)))
    right = asks("color_attr", one("cat", color="red"), one("dog", color="blue"))
    swapped = asks("color_attr", one("cat", color="blue"), one("dog", color="red"))
    assert judge(right, boxes, image=image, colour_of=by_centre).correct
    verdict = judge(swapped, boxes, image=image, colour_of=by_centre)
    assert (verdict.task, verdict.correct) == ("owl-colour-attribution", False)
    assert verdict.reason == "expected blue cat>=1, found red; expected red dog>=1, found blue"


def test_all_things_must_have_the_colour():
    boxes = constructed(("cat", 0.8, at(0, 0)), ("cat", 0.7, at(40, 40)))
    record = asks("colors", {"class": "cat", "count": 2, "color": "red"})
    both, first = painted(("red", at(0, 0)), ("red", at(40, 40))), painted(("red", at(0, 0)))
    assert judge(record, boxes, image=both, colour_of=by_centre).correct
    verdict = judge(record, boxes, image=first, colour_of=by_centre)
    assert verdict.reason == "expected red cat>=2, found red and white"


def test_a_box_thinner_than_a_pixel_still_shows_one():
    boxes = constructed(("cat", 0.8, (64.0, 64.0, 64.0, 64.0)))
    record = asks("colors", one("cat", color="red"))
    assert judge(record, boxes, image=painted(("red", at(60, 60))), colour_of=by_centre).correct


def test_colours_are_refused_without_a_way_to_tell_them():
    record, boxes = asks("colors", one("cat", color="red")), constructed(("cat", 0.8, at(0, 0)))
    with pytest.raises(ValueError, match="colour_of must be given"):
        judge(record, boxes, image=painted())
    with pytest.raises(ValueError, match="image must be given"):
        judge(record, boxes, colour_of=by_centre)


@pytest.fixture(scope="module")
def untrained_clip() -> Clip:
    """A CLIP of random weights whose pictures' and texts' embeddings differ much."""
    vision = open_clip.CLIPVisionCfg(image_size=16, layers=1, width=16, patch_size=8, head_width=8)
    text = open_clip.CLIPTextCfg(context_length=77, layers=1, width=16, heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = open_clip.CLIP(16, vision, text).eval()
        for parameter in model.parameters():
            parameter.data.normal_()
    preprocess = open_clip.image_transform(16, is_train=False, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Clip(model, cast(Preprocess, preprocess), open_clip.get_tokenizer("ViT-B-32"), ClipProtocol())


def test_clip_takes_the_colour_whose_three_texts_are_nearest(untrained_clip):
    rng = np.random.default_rng(2)
    crops = [Image.fromarray(rng.integers(0, 256, (30, 20, 3), np.uint8)) for _ in range(12)]
    images = embed_images(untrained_clip, crops)
    nearness = []
    for colour in COLOURS:
        ways = f"a photo of a {colour} car", f"a photo of a {colour}-colored car", f"a photo of a {colour} object"
        mean = embed_texts(untrained_clip, ways).mean(0)
        nearness.append(images @ mean / mean.norm())
    of_colour = dict(zip(COLOURS, torch.stack(nearness), strict=True))
    nearest = torch.stack(nearness).amax(0)
    colour_of = clip_colours(untrained_clip)
    found = [colour_of(crop, "car") for crop in crops]
    assert len(set(found)) > 1  # it does answer to what it is shown
    for row, colour in enumerate(found):  # one of them may be as near as another to a machine
        assert of_colour[colour][row] == pytest.approx(float(nearest[row]), abs=1e-5)
    fewer = clip_colours(untrained_clip, ("white", "black"))
    assert {fewer(crop, "car") for crop in crops} <= {"white", "black"}


def test_colours_are_told_apart_by_the_plain_texts_only(untrained_clip):
    with pytest.raises(ValueError, match="at least two"):
        clip_colours(untrained_clip, ("red",))
    with pytest.raises(ValueError, match="ensemble 'plain', got 'ae80'"):
        clip_colours(replace(untrained_clip, protocol=ClipProtocol(ensemble="ae80")))


@pytest.mark.parametrize(("record", "message"), [
    ({"tag": "shape", "include": [one("cat")]}, "tag must be one of"),
    ({"tag": "colors", "include": []}, "include must hold"),
    (asks("counting", {"class": "cat", "count": 0}), "count of at least 1"),
    (asks("counting", {"count": 1}), "must have a class"),
    (asks("position", one("cat", position=["left of", 0]), one("dog")), "an earlier clause"),
    (asks("position", one("cat"), one("dog", position=["beside", 0])), "position must be one of"),
    (asks("position", one("cat"), one("dog", position="left of")), "a relation and the number"),
])  # fmt: skip
def test_a_record_of_another_form_is_refused(record, message):
    with pytest.raises(ValueError, match=message):
        queries_of(record)


def test_a_name_that_was_not_asked_is_refused():
    with pytest.raises(ValueError, match="boxes must answer 'frog'"):
        judge(asks("single_object", one("frog")), constructed(("cat", 0.9, at(0, 0))))


@pytest.mark.parametrize("wrong", [
    {"threshold": 1.0}, {"counting_threshold": -0.1}, {"overlap": 0.0}, {"most": 0}, {"margin": -0.1},
])  # fmt: skip
def test_a_protocol_outside_its_ranges_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
        TaskProtocol(**wrong)


def test_protocols_that_read_boxes_differently_have_different_names():
    changes = [{}, {"threshold": 0.3}, {"counting_threshold": 0.3}, {"overlap": 0.3}, {"most": 4}, {"margin": 0.2}]
    assert len({replace(TaskProtocol(), **change).name for change in changes}) == len(changes)


def scene_and_record(rng: np.random.Generator, tag: str, right: bool) -> tuple[Scene, dict]:
    """A rendered scene, and a record that it answers, or does not."""
    words = sample_words(rng, 2, seen_only=False)
    other = str(rng.choice([noun for noun in NOUNS if noun not in words]))
    if tag == "counting":
        shown = int(rng.integers(1, 4))
        count = shown if right else shown % 3 + 1
        exclude = ({"class": words[0], "count": count + 1},)
        record = asks(tag, {"class": words[0], "count": count}, exclude=exclude)
        return place(rng, (words[0],) * shown, [None] * shown), record
    if tag == "two_object":
        return place(rng, words, [None, None]), asks(tag, one(words[0]), one(words[1] if right else other))
    while True:  # until they stand so far apart that one is left of the other by any rule
        scene = place(rng, words, [None, None])
        gap = scene.things[1].box[0] - scene.things[0].box[0]
        if abs(gap) >= 28:
            first, second = words if (gap > 0) == right else words[::-1]
            return scene, asks(tag, one(second), one(first, position=["left of", 0]))


def test_the_emoji_detector_judges_scenes_of_known_content():
    rng, detector = np.random.default_rng(11), load_detector()
    cases = [
        (tag, right) for tag in ("two_object", "counting", "position") for right in (True, False) for _ in range(18)
    ]
    scenes, records = zip(*[scene_and_record(rng, *case) for case in cases], strict=True)
    images = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2) / 255
    answers = look(detector, images, [queries_of(record) for record in records], batch=64)
    verdicts = [judge(record, boxes, EMOJI_TASKS).correct for record, boxes in zip(records, answers, strict=True)]
    hits = [verdict == right for verdict, (_, right) in zip(verdicts, cases, strict=True)]
    by_task = {tag: np.mean([hit for hit, (t, _) in zip(hits, cases, strict=True) if t == tag]) for tag, _ in cases}
    assert by_task["two_object"] >= 0.97
    assert by_task["position"] >= 0.97
    assert by_task["counting"] >= 0.9


def by_mean(crop: Image.Image, obj: str) -> str:
    """The world's colour nearest to what stands before the crop's light ground."""
    pixels = np.asarray(crop, np.float32).reshape(-1, 3)
    mean = pixels[pixels.min(1) < 190].mean(0)
    hues = {name: np.array(rgb) / np.linalg.norm(rgb) for name, rgb in PALETTE.items()}
    return max(("red", "green", "blue"), key=lambda name: float(hues[name] @ mean))


def test_the_emoji_detector_shows_where_to_look_for_a_colour():
    rng, detector = np.random.default_rng(12), load_detector()
    scenes = [place(rng, ("car", "chair"), ["red", "blue"]) for _ in range(8)]
    record = asks("color_attr", one("car", color="red"), one("chair", color="blue"))
    swapped = asks("color_attr", one("car", color="blue"), one("chair", color="red"))
    pictures = [Image.fromarray(render(scene)) for scene in scenes]
    answers = list(zip(pictures, look(detector, pictures, [queries_of(record)] * 8), strict=True))
    assert all(judge(record, boxes, EMOJI_TASKS, image, by_mean).correct for image, boxes in answers)
    assert not any(judge(swapped, boxes, EMOJI_TASKS, image, by_mean).correct for image, boxes in answers)
