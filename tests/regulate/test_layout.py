import re

import jaxtyping
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from regulate.layout import Layout, Segment, layout_of_prompt, placed, resized, vanished
from tracer.prompts import attend_and_excite_templates
from tracer.scenes import Scene, Thing, article, overlap, render
from tracer.words import Encoder, positions_of

CAT, DOG = Thing("cat", None, (4, 6, 34, 36)), Thing("dog", None, (38, 30, 62, 60), mirrored=True)


def mask(rows: str) -> torch.Tensor:
    """A mask as it is drawn: "#" is true, lines are rows."""
    return torch.tensor([[letter == "#" for letter in row] for row in rows.split()])


def layout(*phrases: str) -> Layout:
    """A layout of one column for each phrase."""
    return Layout(tuple(Segment(phrase, torch.eye(len(phrases)).bool()[n : n + 1]) for n, phrase in enumerate(phrases)))


def test_layouts_of_the_same_content_are_equal_and_have_one_digest():
    one, other = (Layout((Segment("", mask("..#")), Segment("a cat", mask("##.")))) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one.digest() == other.digest()
    assert len({one, other}) == 1


@pytest.mark.parametrize(
    "segments",
    [
        (Segment("", mask("..#")), Segment("a dog", mask("##."))),  # another phrase
        (Segment("", mask("..#")), Segment("a cat", mask("#.."))),  # a pixel fewer
        (Segment("a cat", mask("##.")), Segment("", mask("..#"))),  # another order
        (Segment("", mask(". . #")), Segment("a cat", mask("# # ."))),  # turned, the bits the same
        (Segment("a cat", mask("##.")),),
    ],
)
def test_another_phrase_pixel_order_or_shape_is_another_layout(segments):
    one = Layout((Segment("", mask("..#")), Segment("a cat", mask("##."))))
    assert Layout(segments) != one
    assert Layout(segments).digest() != one.digest()


def test_a_segment_keeps_its_mask_when_the_callers_changes():
    mine = mask("#.")
    segment = Segment("a cat", mine)
    mine[:] = True
    assert segment.mask.tolist() == [[True, False]]


def test_a_mask_that_is_a_view_has_the_digest_of_its_copy():
    turned = mask("#. ## .#").T
    assert Segment("", turned).digest() == Segment("", turned.clone(memory_format=torch.contiguous_format)).digest()


@pytest.mark.parametrize("wrong", [torch.zeros(2, 2), torch.zeros(4).bool(), torch.zeros(0, 3).bool()])
def test_a_mask_must_be_boolean_with_height_and_width(wrong):
    jaxtyping.config.update("jaxtyping_disable", True)  # as for a caller without the checks of tests
    try:
        with pytest.raises(ValueError, match=r"mask must be bool \(height, width\), got"):
            Segment("a cat", wrong)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_a_phrase_of_white_space_is_refused():
    with pytest.raises(ValueError, match="phrase must hold a word"):
        Segment(" ", mask("#"))


def test_a_layout_needs_segments_of_one_size():
    with pytest.raises(ValueError, match=re.escape("got the sizes []")):
        Layout(())
    with pytest.raises(ValueError, match=re.escape("got the sizes [(1, 2), (1, 3)]")):
        Layout((Segment("", mask("##")), Segment("a cat", mask("..#"))))


def test_an_empty_segment_is_allowed_and_a_layout_of_nothing_else_is_not():
    empty = Segment("a cat", mask(".."))
    assert Layout((empty, Segment("", mask("#.")))).phrases == ("a cat", "")
    with pytest.raises(ValueError, match="at least one segment must have a pixel"):
        Layout((empty, Segment("", mask(".."))))


def test_segments_that_overlap_are_refused_with_their_names_and_the_place():
    with pytest.raises(ValueError, match=re.escape("got ['a cat', 'a dog'] at row 1, column 2")):
        Layout((Segment("a cat", mask("#.. ..#")), Segment("", mask("... ...")), Segment("a dog", mask("... .##"))))


def test_a_pixel_belongs_to_the_last_box_that_holds_its_centre():
    found = Layout.from_boxes({"a bed": (0.0, 0.5, 1.0, 1.0), "a cat": (0.25, 0.25, 0.75, 0.75)}, size=(4, 4))
    assert found.phrases == ("", "a bed", "a cat")
    assert found.masks.tolist() == [
        mask("#### #..# .... ....").tolist(),
        mask(".... .... #..# ####").tolist(),
        mask(".... .##. .##. ....").tolist(),
    ]


def test_a_box_that_ends_at_a_centre_does_not_hold_it():
    found = Layout.from_boxes({"a cat": (0.125, 0.0, 0.625, 1.0)}, size=(1, 4))  # centres: 1/8, 3/8, 5/8, 7/8
    assert found.segments[1].mask.tolist() == mask("##..").tolist()


def test_boxes_may_come_as_pairs_with_a_phrase_twice_and_a_named_background():
    boxes = [("a cat", (0.0, 0.0, 0.5, 1.0)), ("a cat", (0.5, 0.0, 0.75, 1.0))]
    found = Layout.from_boxes(boxes, size=(1, 4), background="a beach")
    assert found.phrases == ("a beach", "a cat", "a cat")
    assert found.masks[:, 0].tolist() == mask("...# ##.. ..#.").tolist()


def test_a_background_without_words_and_pixels_is_left_out():
    assert Layout.from_boxes({"a cat": (0.0, 0.0, 1.0, 1.0)}, size=(2, 2)).phrases == ("a cat",)


@pytest.mark.parametrize(
    ("boxes", "background", "said"),
    [
        ({}, "", "at least one thing"),
        ({"a cat": (0.5, 0.0, 0.5, 1.0)}, "", "a box must be 0 <= left < right <= 1"),
        ({"a cat": (0.0, 0.2, 1.0, 1.1)}, "", "for 'a cat'"),
        ({"a cat": (0.0, float("nan"), 1.0, 1.0)}, "", "a box must be"),
        ({"a cat": (0.5, 0.5, 0.6, 0.6)}, "", "'a cat' must be seen"),  # between the centres
        ({"a cat": (0.0, 0.0, 0.5, 0.5), "a bed": (0.0, 0.0, 1.0, 1.0)}, "", "'a cat' must be seen"),
        ({"a cat": (0.0, 0.0, 1.0, 1.0)}, "a beach", "'a beach' must be seen"),
    ],
)
def test_boxes_of_which_nothing_can_be_seen_are_refused(boxes, background, said):
    with pytest.raises(ValueError, match=said):
        Layout.from_boxes(boxes, size=(4, 4), background=background)


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size must be"):
        Layout.from_boxes({"a cat": (0.0, 0.0, 1.0, 1.0)}, size=(0, 4))


@pytest.mark.parametrize("thing", [CAT, DOG, Thing("car", "red", (0, 40, 30, 60), mirrored=True)])
def test_an_outline_is_where_the_picture_hides_more_than_half_of_its_background(thing):
    black, white = (render(Scene((v, v, v), (thing,))).astype(int) for v in (0, 255))
    hidden = (white - black).max(-1) < 127.5  # a pixel of opacity a shows (1 - a) of the background's difference
    found = Layout.from_scene(Scene((0, 0, 0), (thing,)))
    assert found.phrases == ("", thing.phrase)
    assert 0 < hidden.sum() < 64 * 64
    assert (found.segments[1].mask.numpy() == hidden).mean() > 0.999  # rounding of colours at one half
    assert (found.segments[0].mask == ~found.segments[1].mask).all()


def test_a_scenes_boxes_are_its_things_boxes():
    found = Layout.from_scene(Scene((0, 0, 0), (CAT, DOG)), outlines=False)
    assert found.phrases == ("", "a cat", "a dog")
    expected = np.zeros((2, 64, 64), bool)
    expected[0, 6:36, 4:34] = expected[1, 30:60, 38:62] = True
    assert (found.masks[1:].numpy() == expected).all()


def test_a_scenes_phrases_are_the_captions_and_later_things_lie_above():
    scene = Scene((0, 0, 0), (Thing("car", "red", (0, 0, 30, 30)), Thing("apple", None, (20, 20, 40, 40))))
    found = Layout.from_scene(scene, outlines=False)
    assert found.phrases == ("", "a red car", "an apple")
    assert found.masks.flatten(1).sum(1).tolist() == [64 * 64 - 900 - 400 + 100, 900 - 100, 400]


def test_every_prompt_of_the_benchmark_gets_a_layout_with_words_of_its_own(emoji_tokenizer):
    prompts = attend_and_excite_templates()
    for prompt in prompts:
        found = layout_of_prompt(prompt.text, prompt.targets, seed=1)
        assert found is not None
        first, second = re.split(r" and | with ", prompt.text)
        assert found.phrases == ("", first, second)
        assert found.size == (64, 64)
        positions = placed(emoji_tokenizer, prompt.text, found)
        assert positions[0] == ()
        for target, own in zip(prompt.targets, positions[1:], strict=True):
            assert set(positions_of(emoji_tokenizer, prompt.text, target)) <= set(own)
    assert len(prompts) == 276


def test_a_layout_of_a_prompt_is_drawn_from_the_seed_and_the_text():
    text, targets = "a cat and a pink apple", ("cat", "apple")
    one = layout_of_prompt(text, targets, seed=3)
    assert one == layout_of_prompt(text, targets, seed=3)
    assert one != layout_of_prompt(text, targets, seed=4)
    other = layout_of_prompt("a cat and a red apple", targets, seed=3)
    assert one is not None
    assert other is not None
    assert not torch.equal(one.masks, other.masks)


def test_the_things_of_a_prompts_boxes_hardly_overlap():
    found = layout_of_prompt("a cat and a dog", ("cat", "dog"), seed=0, outlines=False)
    assert found is not None
    boxes = []
    for segment in found.segments[1:]:
        rows, columns = (segment.mask.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    assert overlap(*boxes) <= 0.06


def test_only_the_targets_are_placed_and_phrases_stand_as_the_prompt_writes_them():
    found = layout_of_prompt("A Cat and Red  car with a bow", ("car", "cat"), seed=0)
    assert found is not None
    assert found.phrases == ("", "A Cat", "Red  car")


def test_two_of_a_kind_and_a_colour_as_target_are_found():
    found = layout_of_prompt("a cat and a cat", ("cat", "cat#2"), seed=0)
    assert found is not None
    assert found.phrases == ("", "a cat", "a cat")
    same = layout_of_prompt("a cat and a red bowl", ("red", "bowl"), seed=0)
    assert same is not None
    assert same.phrases == ("", "a red bowl")


@pytest.mark.parametrize("text", ["a cat and a zebra", "a photo of a cat", "a happy cat", "cats and a cat"])
def test_a_word_of_another_world_means_no_layout(text):
    assert layout_of_prompt(text, ("cat",), seed=0) is None


def test_more_things_than_a_scene_holds_means_no_layout():
    words = ("cat", "dog", "bird", "bear")
    assert layout_of_prompt(" and ".join(map(article, words)), words, seed=0) is None
    assert layout_of_prompt(" and ".join(map(article, words)), words[:3], seed=0) is not None


@pytest.mark.parametrize(
    ("targets", "seed", "said"),
    [
        (("dog",), 0, "target 'dog' must stand in the prompt"),
        (("cat#2",), 0, "with 1 'cat'"),
        (("and",), 0, "target 'and' must name one thing"),
        ((), 0, "targets must name at least one thing"),
        (("cat",), -1, "seed must be 0 or more, got -1"),
    ],
)
def test_a_target_that_names_nothing_is_refused(targets, seed, said):
    with pytest.raises(ValueError, match=said):
        layout_of_prompt("a cat and a bowl", targets, seed=seed)


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (12, 20), (7, 5), (96, 128), (1, 1)])
def test_masks_are_resized_as_torch_takes_the_nearest(size):
    found = Layout.from_scene(Scene((0, 0, 0), (CAT, DOG)))
    expected = torch.cat([interpolate(s.mask[None, None].float(), size, mode="nearest")[0] for s in found.segments])
    assert resized(found, *size).dtype == torch.bool
    assert torch.equal(resized(found, *size).float(), expected)


def test_the_nearest_pixel_is_the_one_at_the_floor_of_its_place():
    wide = Layout((Segment("", mask("#.##.#")), Segment("a cat", mask(".#..#."))))
    assert resized(wide, 2, 4)[1].tolist() == mask(".#.# .#.#").tolist()  # pixels 0, 1, 3, 4 of 6: floor(1.5 x)


def test_a_segment_that_vanishes_is_said_and_stays_empty():
    found = Layout.from_boxes({"a bed": (0.0, 0.5, 1.0, 1.0), "a key": (0.25, 0.0, 0.5, 0.25)}, size=(4, 4))
    assert vanished(found, 4, 4) == ()
    assert vanished(found, 2, 2) == ("a key",)  # its one pixel (0, 1) is between the ones taken
    assert not resized(found, 2, 2)[2].any()


def test_a_map_of_no_size_is_refused():
    with pytest.raises(ValueError, match="height and width must be at least 1, got 0 and 4"):
        resized(layout("a cat"), 0, 4)


def test_phrases_are_placed_at_their_words_and_none_at_no_words(clip_tokenizer):
    found = placed(clip_tokenizer, "A red car and a CAT.", layout("", "a cat", "a red car"))
    assert found == ((), (5, 6), (1, 2, 3))  # start, a, red, car, and, a, cat, .


def test_the_second_of_two_equal_phrases_gets_the_second_occurrence(clip_tokenizer):
    found = placed(clip_tokenizer, "a cat and a cat", layout("a cat", "", "A  cat"))
    assert found == ((1, 2), (), (4, 5))


def test_a_phrase_does_not_take_the_words_of_a_longer_one(clip_tokenizer):
    assert placed(clip_tokenizer, "red car and car", layout("car", "red car")) == ((4,), (1, 2))


def test_a_phrase_may_say_which_of_its_kind_it_means(clip_tokenizer):
    assert placed(clip_tokenizer, "cat and cat", layout("cat", "cat#1")) == ((3,), (1,))


def test_a_phrase_has_tokens_in_every_encoder(clip_tokenizer):
    encoders = [Encoder(clip_tokenizer, length=10, name="one"), Encoder(clip_tokenizer, length=10, name="two")]
    assert placed(encoders, "a cat", layout("cat")) == ((2, 12),)


def test_a_phrase_that_is_not_in_the_prompt_is_refused_with_the_words_there(clip_tokenizer):
    with pytest.raises(ValueError, match="target 'a car' is not in the prompt; words are a, cart, and, a, cat"):
        placed(clip_tokenizer, "a cart and a cat", layout("a cat", "a car"))


def test_segments_that_share_their_only_words_are_refused(clip_tokenizer):
    with pytest.raises(ValueError, match="got 'a cat', of which the prompt has 1, taken by 'a cat'"):
        placed(clip_tokenizer, "a cat", layout("a cat", "a cat"))
    with pytest.raises(ValueError, match="got 'a bow', of which the prompt has 1, taken by 'a cat with a bow'"):
        placed(clip_tokenizer, "a cat with a bow", layout("a bow", "a cat with a bow"))
