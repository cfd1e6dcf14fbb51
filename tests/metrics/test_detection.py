"""Detection: equal to transformers' own post-processing by default, and guarded where that misleads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    CLIPTokenizer,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
)

from metrics.detection import Boxes, Detection, detect, detection_rate, found, in_pixels, look, score_targets
from metrics.protocols import DetectionProtocol
from metrics.weights import Detector, as_tensors, load_detector
from tracer.scenes import place, render

FULL_SIZE = {  # of google/owlv2-base-patch16-ensemble
    "text_config": {
        "vocab_size": 49_408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 16, "bos_token_id": 49_406,
        "eos_token_id": 49_407, "pad_token_id": 0,
    },
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 960, "patch_size": 16,
    },
    "projection_dim": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def owl_tokenizer(clip_vocabulary):
    """CLIP's own tokenizer, as OWLv2 has it: 16 tokens, padded with "!", which is id 0."""
    return CLIPTokenizer(*clip_vocabulary, model_max_length=16, pad_token="!")


def untrained(config: Owlv2Config, tokenizer: CLIPTokenizer) -> Detector:
    size = config.vision_config.image_size
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Owlv2ForObjectDetection(config).eval()
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": size, "width": size}), tokenizer)
    return Detector(model, processor, DetectionProtocol(checkpoint="untrained"))


@pytest.fixture(scope="module")
def small(owl_tokenizer):
    """A random detector of 8x8 boxes at 64 px whose boxes and scores differ much."""
    text = FULL_SIZE["text_config"] | {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision |= {"image_size": 64, "patch_size": 8}
    detector = untrained(Owlv2Config(text_config=text, vision_config=vision, projection_dim=32), owl_tokenizer)
    generator = torch.Generator().manual_seed(1)
    for parameter in detector.model.parameters():
        if parameter.ndim > 1:  # biases would make all boxes alike
            parameter.data.normal_(0, 0.5, generator=generator)
    return detector


def pictures(count: int, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def constructed(scores: list[list[float]], corners: list[list[float]]) -> Boxes:
    """Boxes with the given scores for cat and dog."""
    logits = torch.tensor(scores).logit()
    return Boxes(("cat", "dog"), ("a photo of a cat", "a photo of a dog"), logits, torch.tensor(corners).float())


def by_transformers(
    detector: Detector, image: torch.Tensor, names: list[str]
) -> list[tuple[float, list[float]] | None]:
    """Best score and box of every name by transformers alone, from an 8-bit image."""
    pixels = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    texts = [[detector.protocol.query(name) for name in names]]
    with torch.no_grad():
        outputs = detector.model(**detector.processor(text=texts, images=pixels, return_tensors="pt"))
    (result,) = detector.processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, target_sizes=[image.shape[1:]], text_labels=texts
    )
    best: list[tuple[float, list[float]] | None] = []
    for text in texts[0]:
        mine = [i for i, label in enumerate(result["text_labels"]) if label == text]
        top = max(mine, key=lambda i: result["scores"][i].item(), default=None)
        best.append(None if top is None else (result["scores"][top].item(), result["boxes"][top].tolist()))
    return best


def assert_same(detections: tuple[Detection, ...], expected: list, width: int, height: int) -> None:
    for detection, theirs in zip(detections, expected, strict=True):
        if theirs is None:
            assert (detection.score, detection.box) == (0.0, None)
            continue
        score, box = theirs
        clipped = [min(max(side, 0), most) for side, most in zip(box, (width, height) * 2, strict=True)]
        assert detection.score == pytest.approx(score, abs=1e-5)
        assert detection.box == pytest.approx(clipped, abs=1e-3)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 64), (90, 50)])
def test_argmax_equals_the_post_processing_of_transformers(small, height, width):
    images = (pictures(3, height, width) * 255).round() / 255
    names = ["cat", "dog", "elephant"]
    answered = 0
    for image, detections in zip(images, detect(small, images, [names] * 3), strict=True):
        expected = by_transformers(small, image, names)
        assert_same(detections, expected, width, height)
        answered += sum(theirs is not None for theirs in expected)
    assert answered >= 6  # the comparison is not empty


def test_a_hybrid_counts_once_by_argmax_and_twice_when_independent():
    hybrid = constructed([[0.55, 0.50], [0.02, 0.01]], [[0, 0, 30, 30], [30, 30, 60, 60]])
    cat, dog = score_targets(hybrid, "argmax")
    assert (cat.score, dog.score, dog.box) == (pytest.approx(0.55), 0.0, None)
    cat, dog = score_targets(hybrid, "independent")
    assert (cat.score, dog.score) == (pytest.approx(0.55), pytest.approx(0.50))
    assert cat.box == dog.box == (0, 0, 30, 30)


def test_distinct_gives_one_thing_to_one_target_only():
    hybrid = constructed([[0.55, 0.10], [0.10, 0.50], [0.02, 0.03]], [[0, 0, 30, 30], [1, 0, 31, 30], [40, 40, 60, 60]])
    assert [d.score for d in score_targets(hybrid, "argmax")] == pytest.approx([0.55, 0.50])
    cat, dog = score_targets(hybrid, "distinct")
    assert (cat.score, dog.score) == (pytest.approx(0.55), pytest.approx(0.03))
    assert dog.box == (40, 40, 60, 60)


def test_distinct_takes_the_best_match_as_a_whole_not_the_first_best():
    boxes = constructed([[0.9, 0.8], [0.7, 0.1]], [[0, 0, 30, 30], [30, 30, 60, 60]])
    cat, dog = score_targets(boxes, "distinct")
    assert (cat.score, dog.score) == (pytest.approx(0.7), pytest.approx(0.8))


def test_distinct_leaves_a_target_without_box_when_there_is_one_thing():
    cat, dog = score_targets(constructed([[0.9, 0.8]], [[0, 0, 30, 30]]), "distinct")
    assert cat.box is not None
    assert (dog.score, dog.box) == (0.0, None)


def test_an_unknown_assignment_is_refused():
    with pytest.raises((ValueError, TypeError), match=r"argmax.*independent.*distinct"):
        score_targets(constructed([[0.9, 0.8]], [[0, 0, 30, 30]]), "greedy")  # pyright: ignore[reportArgumentType]


def test_images_with_different_numbers_of_targets_do_not_disturb_each_other(small):
    images = pictures(4)
    targets = [["cat"], ["cat", "dog", "lion", "frog"], ["dog"], ["mouse", "horse"]]
    together = detect(small, images, targets)
    for image, names, detections in zip(images, targets, together, strict=True):
        (alone,) = detect(small, image[None], [names])
        assert [d.target for d in detections] == names
        assert [d.score for d in detections] == pytest.approx([d.score for d in alone], abs=1e-6)
    texts = [[small.protocol.query(n) for n in names] for names in targets]
    inputs = small.processor(text=texts, images=list(images), do_rescale=False, return_tensors="pt")
    with torch.no_grad():
        padded = small.model(**inputs).logits[0]
    assert padded.argmax(-1).ne(0).any()  # so the processor's filler queries would have taken boxes


def test_the_batch_size_does_not_matter(small):
    images, targets = pictures(5), [["cat", "dog"]] * 5
    one, five = detect(small, images, targets, batch=1), detect(small, images, targets, batch=5)
    scores = [[[d.score for d in image] for image in run] for run in (one, five)]
    assert np.allclose(*scores, atol=1e-6)


def test_pil_images_of_different_sizes_give_what_tensors_give(small):
    tensors = [(pictures(1, 64, 64)[0] * 255).round() / 255, (pictures(1, 30, 50)[0] * 255).round() / 255]
    images = [Image.fromarray((t.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for t in tensors]
    together = detect(small, images, [["cat"], ["cat"]])
    alone = [detect(small, t[None], [["cat"]])[0] for t in tensors]
    assert [d[0].score for d in together] == pytest.approx([d[0].score for d in alone], abs=1e-6)


def test_boxes_are_scaled_to_the_longer_side_and_clipped_to_the_image():
    boxes = torch.tensor([[[0.5, 0.25, 0.5, 0.5], [0.9, 0.9, 0.4, 0.4]]])
    corners = in_pixels(boxes, torch.tensor([[40, 100]]))
    assert corners[0].tolist() == [pytest.approx([25, 0, 75, 40]), pytest.approx([70, 40, 100, 40])]


@pytest.mark.parametrize("names", [[], ["cat", "cat"], "cat"])
def test_targets_that_cannot_be_answered_are_refused(small, names):
    with pytest.raises(ValueError, match="different names"):
        detect(small, pictures(1), [names])


def test_one_list_of_targets_per_image_is_required(small):
    with pytest.raises(ValueError, match="one list per image"):
        detect(small, pictures(2), [["cat"]])


def test_a_query_past_the_tokenizer_is_refused(small):
    with pytest.raises(ValueError, match="at most 16 tokens"):
        detect(small, pictures(1), [["very " * 14 + "old cat"]])


def test_images_outside_zero_to_one_are_refused(small):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        detect(small, pictures(1) * 255, [["cat"]])


def detection(score: float) -> Detection:
    return Detection("cat", "a photo of a cat", score, (0.0, 0.0, 1.0, 1.0))


def test_an_image_counts_only_if_every_target_is_above_the_threshold():
    both, one, edge = [[detection(a), detection(b)] for a, b in ((0.4, 0.9), (0.05, 0.9), (0.1, 0.9))]
    assert found(both, 0.1)
    assert not found(one, 0.1)
    assert not found(edge, 0.1)  # above, not at, as transformers has it
    assert detection_rate([both, one, edge, both], 0.1) == 0.5


def test_rates_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        detection_rate([], 0.1)
    with pytest.raises(ValueError, match="at least one target"):
        detection_rate([[]], 0.1)


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=20), st.data())
def test_the_rate_never_rises_with_the_threshold(scores, data):
    images = [[detection(score) for score in image] for image in scores]
    low, high = sorted((data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))))
    assert detection_rate(images, low) >= detection_rate(images, high)


def test_the_full_size_detector_goes_through_the_same_code(owl_tokenizer):
    detector = untrained(Owlv2Config(**FULL_SIZE), owl_tokenizer)
    seen = []
    detector.model.register_forward_hook(lambda module, arguments, outputs: seen.append(outputs))
    (boxes,) = look(detector, pictures(1, 512, 512), [["elephant", "glasses"]])
    assert boxes.queries == ("a photo of an elephant", "a photo of a glasses")
    assert boxes.logits.shape == (60 * 60, 2)
    assert boxes.corners.min() >= 0
    assert boxes.corners.max() <= 512
    (theirs,) = detector.processor.image_processor.post_process_object_detection(
        seen[0], threshold=0.0, target_sizes=[(512, 512)]
    )
    for query, detection in enumerate(score_targets(boxes)):
        scores = theirs["scores"][theirs["labels"] == query]
        assert detection.score == pytest.approx(scores.max().item() if len(scores) else 0.0, abs=1e-6)


def test_the_emoji_detector_finds_what_is_there_and_nothing_else():
    detector = load_detector()
    rng = np.random.default_rng(5)
    scenes = [place(rng, words, [None, None]) for words in (("cat", "dog"), ("lion", "clock"), ("frog", "car"))]
    images = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2) / 255
    present = detect(detector, images, [[thing.word for thing in scene.things] for scene in scenes])
    assert detection_rate(present, detector.protocol.threshold) == 1.0
    absent = detect(detector, images, [["horse", "apple"]] * 3)
    assert not any(d.score > detector.protocol.threshold for detections in absent for d in detections)
    halved = detect(
        replace(detector, protocol=replace(detector.protocol, assignment="distinct")),
        images,
        [["cat", "dog"]] * 3,
    )
    assert [found(d, detector.protocol.threshold) for d in halved] == [True, False, False]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, 255.0, float("nan")])
def test_pixels_outside_their_range_are_refused(wrong):
    images = torch.full((1, 3, 8, 8), 0.5)
    images[0, 0, 0, 0] = wrong
    with pytest.raises(ValueError, match="images must lie in"):
        as_tensors(images)


def test_the_fillers_of_shorter_lists_of_targets_are_not_among_an_images_boxes():
    """Asked in one call: the processor fills up shorter lists of queries, and the fillers would compete for boxes."""
    detector = load_detector()
    rng = np.random.default_rng(11)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(4)]
    targets = [["cat"], ["cat", "dog", "lion"], ["bear", "frog"], ["dog"]]
    together = look(detector, images, targets)
    for image, names, boxes in zip(images, targets, together, strict=True):
        (alone,) = look(detector, [image], [names])
        assert boxes.logits.shape == alone.logits.shape
        assert torch.allclose(boxes.logits, alone.logits, atol=1e-4)
        scores = zip(score_targets(boxes), score_targets(alone), strict=True)
        assert all(one.score == pytest.approx(other.score, abs=1e-4) for one, other in scores)
