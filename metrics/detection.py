"""Detection rate: the share of images in which every target object is found by an open-vocabulary detector.

Conventions:
    Images are float32 RGB in [0, 1], "batch 3 height width", or PIL images, also of different sizes.
    Targets are object names, at least one per image, all different; queries are made by the protocol.
    Scores are sigmoids in [0, 1] before any threshold; a target is found if its score is above it.
    Boxes are (left, top, right, bottom) in pixels, clipped to the image. OWLv2 pads an image to a square
    at its right and bottom, and a box may reach into the padding.
Assignments, that is, which boxes may answer a query:
    argmax       a box answers only the query that it fits best: what transformers' post-processing does,
                 and so what a user of it measures. The default.
    independent  a box answers every query: one hybrid object can then count as two targets.
    distinct     no two targets get the same thing: boxes are thinned to ones whose IoU is below 0.5, and
                 each target gets its own by a best one-to-one match.
Metrics:
    detection_rate  share of images with all targets found (arXiv 2403.06381, section 4).
Source: post-processing of transformers 5.23, ``image_processing_owlv2.py``.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, nms

from metrics.protocols import ASSIGNMENTS, Assignment
from metrics.weights import Detector, as_tensors

SAME_THING = 0.5  # IoU from which two boxes are taken for one thing

Images = Float[Tensor, "batch 3 height width"] | Sequence[Image.Image]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Boxes:
    """All that the detector says of one image: every box with its score for every target."""

    targets: tuple[str, ...]
    queries: tuple[str, ...]
    logits: Float[Tensor, "box query"]
    corners: Float[Tensor, "box 4"]


@dataclass(frozen=True)
class Detection:
    """The best box for one target; score 0 and no box if none is left for it."""

    target: str
    query: str
    score: float
    box: Box | None


def detect(
    detector: Detector,
    images: Images,
    targets: Sequence[Sequence[str]],
    batch: int = 8,
    assignment: Assignment | None = None,
) -> list[tuple[Detection, ...]]:
    """Return every target's detection, for each image in the order of its targets.

    Args:
        detector: from `metrics.weights.load_detector`.
        images: what to look at.
        targets: object names of each image.
        batch: images in one forward pass.
        assignment: in place of the protocol's.

    Raises:
        ValueError: no or repeated targets, not one list for each image, or a query that is too long.
    """
    chosen = assignment or detector.protocol.assignment
    found_boxes: dict[int, tuple[Detection, ...]] = {}
    for index, boxes in _looked(detector, images, targets, batch):
        found_boxes[index] = score_targets(boxes, chosen)
    return [found_boxes[index] for index in range(len(found_boxes))]


def look(detector: Detector, images: Images, targets: Sequence[Sequence[str]], batch: int = 8) -> list[Boxes]:
    """Return all boxes of each image, for several assignments at the price of one pass; see `detect`."""
    return [boxes for _, boxes in sorted(_looked(detector, images, targets, batch), key=lambda pair: pair[0])]


def score_targets(boxes: Boxes, assignment: Assignment = "argmax") -> tuple[Detection, ...]:
    """Return each target's best box and its score under an assignment.

    Raises:
        ValueError: the assignment is unknown.
    """
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment must be one of {', '.join(ASSIGNMENTS)}, got {assignment!r}")
    if assignment == "distinct":
        chosen = _distinct(boxes)
    else:
        logits = boxes.logits
        if assignment == "argmax":
            best = logits.max(-1).indices  # of equal queries the one that transformers takes
            own = torch.nn.functional.one_hot(best, logits.shape[-1]).bool()
            logits = logits.masked_fill(~own, -torch.inf)
        values, indices = logits.max(0)
        chosen = {q: int(indices[q]) for q in range(len(boxes.targets)) if values[q] > -torch.inf}
    return tuple(_detection(boxes, query, chosen.get(query)) for query in range(len(boxes.targets)))


def found(detections: Sequence[Detection], threshold: float) -> bool:
    """Return whether every target's score is above the threshold.

    Raises:
        ValueError: there is no target, so that "every" says nothing.
    """
    if not detections:
        raise ValueError("detections must hold at least one target, got none")
    return all(detection.score > threshold for detection in detections)


def detection_rate(images: Sequence[Sequence[Detection]], threshold: float) -> float:
    """Return the share of images in which all targets are found, in [0, 1].

    Raises:
        ValueError: there is no image.
    """
    if not images:
        raise ValueError("images must hold at least one image, got none")
    return sum(found(detections, threshold) for detections in images) / len(images)


def _looked(
    detector: Detector, images: Images, targets: Sequence[Sequence[str]], batch: int
) -> Iterator[tuple[int, Boxes]]:
    pixels = as_tensors(images)
    if len(pixels) != len(targets):
        raise ValueError(f"targets must have one list per image ({len(pixels)}), got {len(targets)}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    groups: dict[int, list[int]] = defaultdict(list)
    for names in targets:
        _check_names(names)
    check_queries(detector, list(dict.fromkeys(name for names in targets for name in names)))
    for index, names in enumerate(targets):
        groups[len(names)].append(index)  # the processor's filler queries would compete for boxes
    for indices in groups.values():
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            passed = _pass(detector, [pixels[i] for i in part], [targets[i] for i in part])
            yield from zip(part, passed, strict=True)


def check_targets(detector: Detector, names: Sequence[str]) -> None:
    """Raise ValueError unless these are objects that the detector can be asked for together."""
    _check_names(names)
    check_queries(detector, names)


def check_queries(detector: Detector, names: Sequence[str]) -> None:
    """Raise ValueError unless the query for each name has a length that the detector reads to its end."""
    tokenizer = detector.processor.tokenizer
    queries = [detector.protocol.query(name) for name in names]
    for query, ids in zip(queries, tokenizer(queries).input_ids if queries else (), strict=True):
        if len(ids) > tokenizer.model_max_length:
            most = tokenizer.model_max_length
            raise ValueError(f"query {query!r} must have at most {most} tokens, got {len(ids)}")


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise ValueError(f"targets must be lists of different names, at least one each, got {names!r}")


@torch.inference_mode()
def _pass(detector: Detector, pixels: list[Tensor], targets: list[Sequence[str]]) -> list[Boxes]:
    queries = [[detector.protocol.query(name) for name in names] for names in targets]
    options = {"do_rescale": False, "return_tensors": "pt"}
    inputs = detector.processor(text=queries, images=pixels, **options)
    outputs = detector.model(**inputs.to(detector.model.device))
    sizes = torch.tensor([image.shape[1:] for image in pixels])
    corners = in_pixels(outputs.pred_boxes.float().cpu(), sizes)
    logits = outputs.logits.float().cpu()
    parts = zip(targets, queries, logits, corners, strict=True)
    return [Boxes(tuple(names), tuple(texts), scores, places) for names, texts, scores, places in parts]


def in_pixels(boxes: Float[Tensor, "batch box 4"], sizes: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch box 4"]:
    """Return corners in pixels, clipped to the images.

    Args:
        boxes: (centre x, centre y, width, height) as shares of the padded square.
        sizes: height and width of the images, in pixels.
    """
    height, width = (side[:, None, None].to(boxes.dtype) for side in sizes.unbind(1))
    corners = box_convert(boxes, "cxcywh", "xyxy") * torch.maximum(height, width)
    across, down = corners[..., 0::2], corners[..., 1::2]
    clipped = torch.minimum(across.clamp(min=0), width), torch.minimum(down.clamp(min=0), height)
    return torch.stack(clipped, -1).flatten(-2)


def _distinct(boxes: Boxes) -> dict[int, int]:
    kept = nms(boxes.corners, boxes.logits.amax(-1), SAME_THING)
    scores = boxes.logits[kept].sigmoid().double()
    rows, queries = linear_sum_assignment(scores.numpy(), maximize=True)
    return {int(query): int(kept[row]) for row, query in zip(rows, queries, strict=True)}


def _detection(boxes: Boxes, query: int, index: int | None) -> Detection:
    target, text = boxes.targets[query], boxes.queries[query]
    if index is None:
        return Detection(target, text, 0.0, None)
    left, top, right, bottom = boxes.corners[index].tolist()
    return Detection(target, text, boxes.logits[index, query].sigmoid().item(), (left, top, right, bottom))
