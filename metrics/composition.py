"""Does an image hold what its prompt says: how many, of which colour, in which place? Tasks on our own detector.

Conventions:
    The records are GenEval's, its rules are followed, and its detector is not used: OWLv2 instead of Mask2Former, boxes
    instead of masks. A score here is therefore none of GenEval's, is called by a name of its own ("owl-count"), and
    compares with other scores of the same detector only.
    Clauses of "include" must all hold, none of "exclude" may. Colour and position are asked of a name's surest things.
    Boxes are (left, top, right, bottom) in pixels; a thing is left of another whose centre lies at a larger x.
Where the rules differ, since OWLv2 answers with thousands of boxes and thins none of them:
    - a box answers only the name that fits it best ("argmax" in ``metrics/detection.py``) among the names that the
      detector was asked for, so more names make it stricter; `queries_of` gives the ones that a record needs;
    - boxes of one name that overlap are thinned, and the limit on things comes after that, not before;
    - a colour is read off the whole box, background included, for there is no mask to cut it out with.
Colour is no matter for the detector (the emoji world's was trained to overlook it), so the caller says how to tell one,
for example by `clip_colours`.
Source: github.com/djghosh13/geneval, evaluation/evaluate_images.py at af4902f (arXiv 2310.11513).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import nms

from metrics.clip_score import Clip, embed_images, embed_texts
from metrics.detection import Box, Boxes

TASKS = {
    "single_object": "owl-single",
    "two_object": "owl-two-object",
    "counting": "owl-count",
    "colors": "owl-colour",
    "color_attr": "owl-colour-attribution",
    "position": "owl-position",
}
RELATIONS = ("left of", "right of", "above", "below")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOUR_TEMPLATES = (
    "a photo of a {colour} {obj}",
    "a photo of a {colour}-colored {obj}",
    "a photo of a {colour} object",
)

ColourOf = Callable[[Image.Image, str], str]


@dataclass(frozen=True)
class TaskProtocol:
    """How boxes become things, and things an answer. The defaults are ours, and not tuned on pictures of any model.

    Attributes:
        threshold: score above which a box counts, in [0, 1). 0.1 is the default of transformers.
        counting_threshold: the same for "owl-count", higher as in GenEval (there 0.9 after 0.3).
        overlap: IoU of two boxes of one name above which the less sure one is dropped, in (0, 1].
        most: things of one name that are looked at. GenEval's.
        margin: share of both things' sides by which centres must differ to count as beside each other. GenEval's.
    """

    threshold: float = 0.1
    counting_threshold: float = 0.2
    overlap: float = 0.5
    most: int = 16
    margin: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be a protocol."""
        for field in ("threshold", "counting_threshold"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must lie in [0, 1), got {getattr(self, field)}")
        if not 0 < self.overlap <= 1:
            raise ValueError(f"overlap must lie in (0, 1], got {self.overlap}")
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")
        if self.margin < 0:
            raise ValueError(f"margin must not be negative, got {self.margin}")

    @property
    def name(self) -> str:
        """What is printed after the detector's fingerprint, e.g. "owl-tasks@0.10,count0.20,iou0.50,16,margin0.10"."""
        levels = f"{self.threshold:.2f},count{self.counting_threshold:.2f}"
        return f"owl-tasks@{levels},iou{self.overlap:.2f},{self.most},margin{self.margin:.2f}"


EMOJI_TASKS = TaskProtocol(threshold=0.26, counting_threshold=0.35, overlap=0.3)  # of 800 rendered scenes 99 % right


@dataclass(frozen=True)
class Verdict:
    """Whether an image does what its record asks, what is wrong if not ("" if nothing), and the things by name."""

    task: str
    correct: bool
    reason: str
    boxes: Mapping[str, list[Box]]


@dataclass(frozen=True)
class _Clause:
    """At least `count` things of a name, in a colour, in a place relative to those of an earlier clause."""

    name: str
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None


def queries_of(metadata: Mapping[str, Any]) -> list[str]:
    """Return the names that the detector must be asked for to judge a record, each once, in the record's order.

    Raises:
        ValueError: the record is none of GenEval's form.
    """
    _, include, exclude = _read(metadata)
    return list(dict.fromkeys(clause.name for clause in include + exclude))


def judge(
    metadata: Mapping[str, Any],
    boxes: Boxes,
    protocol: TaskProtocol | None = None,
    image: Image.Image | None = None,
    colour_of: ColourOf | None = None,
) -> Verdict:
    """Return whether an image does what a record asks.

    Args:
        metadata: one record in GenEval's form, with "tag" and "include", perhaps "exclude".
        boxes: what `metrics.detection.look` says of the image, asked for at least `queries_of(metadata)`.
        protocol: thresholds and margins, `TaskProtocol()` by default.
        image: where crops are cut out; needed for colours only.
        colour_of: names the colour of a crop that shows a thing of the given name; needed for colours only.

    Raises:
        ValueError: the record is none of GenEval's form, a name was not asked, or a colour is asked and either the
            image or the way to tell colours is missing.
    """
    protocol = protocol or TaskProtocol()
    task, include, exclude = _read(metadata)
    level = protocol.counting_threshold if task == "owl-count" else protocol.threshold
    things = {name: things_of(boxes, name, level, protocol) for name in queries_of(metadata)}
    reasons: list[str] = []
    matched: list[list[Box]] = []  # the things of each clause; empty if it does not hold
    for clause in include:
        mine = things[clause.name][: clause.count]
        reason = _too_few(clause, mine)
        if not reason and clause.colour is not None:
            reason = _wrong_colour(clause, mine, image, colour_of)
        if not reason and clause.position is not None:
            reason = _wrong_place(clause, mine, matched[clause.position[1]], protocol.margin)
        matched.append([] if reason else mine)
        reasons += [reason] if reason else []
    for clause in exclude:
        if (count := len(things[clause.name])) >= clause.count:
            reasons.append(f"expected {clause.name}<{clause.count}, found {count}")
    return Verdict(task, not reasons, "; ".join(reasons), things)


def things_of(boxes: Boxes, name: str, threshold: float, protocol: TaskProtocol) -> list[Box]:
    """Return the boxes of the things of one name, the surest first.

    Raises:
        ValueError: the detector was not asked for the name.
    """
    if name not in boxes.targets:
        raise ValueError(f"boxes must answer {name!r}, got answers to {', '.join(boxes.targets)}")
    query = boxes.targets.index(name)
    scores = boxes.logits[:, query].sigmoid()
    own = (boxes.logits.max(-1).indices == query) & (scores > threshold)
    corners = boxes.corners[own]
    kept = nms(corners, scores[own], protocol.overlap)[: protocol.most]
    return [(left, top, right, bottom) for left, top, right, bottom in corners[kept].tolist()]


def relations(one: Box, other: Box, margin: float) -> set[str]:
    """Return how the first box stands to the second: of "left of", "right of", "above" and "below" at most two.

    The centres' offset counts as far as it exceeds the margin, a share of both boxes' summed sides; a relation holds
    if that is more than half of the distance of the centres.
    """
    offset = torch.tensor(one).view(2, 2).mean(0) - torch.tensor(other).view(2, 2).mean(0)
    sides = [torch.tensor(box).view(2, 2).diff(dim=0)[0].abs() for box in (one, other)]
    beyond = (offset.abs() - margin * (sides[0] + sides[1])).clamp(min=0) * offset.sign()
    if (beyond.abs() < 1e-3).all():
        return set()
    across, down = (beyond / offset.norm()).tolist()
    signs = {"left of": -across, "right of": across, "above": -down, "below": down}
    return {relation for relation, share in signs.items() if share > 0.5}


def clip_colours(clip: Clip, colours: Sequence[str] = COLOURS) -> ColourOf:
    """Return a way to tell the colour of a crop by CLIP, as GenEval does: three templates, the nearest colour wins.

    Args:
        clip: from `metrics.clip_score.load_clip`, of a "plain" protocol.
        colours: what a thing's colour may be; GenEval's ten by default.

    Raises:
        ValueError: there are fewer than two colours to tell apart, or the protocol puts templates around ours.
    """
    if len(colours) < 2:
        raise ValueError(f"colours must be at least two, got {colours!r}")
    if clip.protocol.ensemble != "plain":
        raise ValueError(f"clip must have the ensemble 'plain', got {clip.protocol.ensemble!r}")
    normalize = torch.nn.functional.normalize

    @cache
    def prototypes(obj: str) -> Tensor:
        texts = [t.format(colour=colour, obj=obj) for colour in colours for t in COLOUR_TEMPLATES]
        return normalize(embed_texts(clip, texts).unflatten(0, (len(colours), -1)).mean(1), dim=-1)

    def colour_of(crop: Image.Image, obj: str) -> str:
        return colours[int((prototypes(obj) @ embed_images(clip, [crop])[0]).argmax())]

    return colour_of


def _too_few(clause: _Clause, things: list[Box]) -> str:
    return f"expected {clause.name}>={clause.count}, found {len(things)}" if len(things) < clause.count else ""


def _wrong_colour(clause: _Clause, things: list[Box], image: Image.Image | None, colour_of: ColourOf | None) -> str:
    if image is None or colour_of is None:
        missing = "image" if image is None else "colour_of"
        raise ValueError(f"{missing} must be given to judge a record that names a colour, got None")
    colours = [colour_of(_crop(image, box), clause.name) for box in things]
    wrong = [colour for colour in colours if colour != clause.colour]
    return f"expected {clause.colour} {clause.name}>={clause.count}, found {' and '.join(colours)}" if wrong else ""


def _crop(image: Image.Image, box: Box) -> Image.Image:
    """Return the part of an image in a box, at least one pixel a side."""
    left, top = min(int(box[0]), image.width - 1), min(int(box[1]), image.height - 1)
    right, bottom = max(round(box[2]), left + 1), max(round(box[3]), top + 1)
    return image.crop((left, top, right, bottom))


def _wrong_place(clause: _Clause, things: list[Box], targets: list[Box], margin: float) -> str:
    expected, _ = clause.position or ("", 0)
    if not targets:
        return f"no target for {clause.name} to be {expected}"
    for thing in things:
        for target in targets:
            if expected not in (seen := relations(thing, target, margin)):
                found = " and ".join(sorted(seen)) or "neither side of"
                return f"expected {clause.name} {expected} target, found {found} target"
    return ""


def _read(metadata: Mapping[str, Any]) -> tuple[str, list[_Clause], list[_Clause]]:
    """Return the task's name and its clauses."""
    if (tag := metadata.get("tag")) not in TASKS:
        raise ValueError(f"tag must be one of {', '.join(TASKS)}, got {tag!r}")
    include, exclude = (_clauses(metadata, part) for part in ("include", "exclude"))
    if not include:
        raise ValueError(f"include must hold at least one clause, got {metadata.get('include')!r}")
    for index, clause in enumerate(include):
        if clause.position is None:
            continue
        relation, target = clause.position
        if relation not in RELATIONS or not 0 <= target < index:
            raise ValueError(f"position must be one of {RELATIONS} and an earlier clause, got {clause.position!r}")
    return TASKS[tag], include, exclude


def _clauses(metadata: Mapping[str, Any], part: str) -> list[_Clause]:
    records = metadata.get(part) or []
    if not isinstance(records, list | tuple) or not all(isinstance(record, Mapping) for record in records):
        raise ValueError(f"{part} must be a list of clauses, got {records!r}")
    return [_clause(record) for record in records]


def _clause(record: Mapping[str, Any]) -> _Clause:
    name, count = record.get("class"), record.get("count")
    if not isinstance(name, str) or not name or not isinstance(count, int) or count < 1:
        raise ValueError(f"a clause must have a class and a count of at least 1, got {dict(record)!r}")
    match record.get("position"):
        case None:
            position = None
        case [str() as relation, int() as target]:
            position = (relation, target)
        case other:
            raise ValueError(f"position must be a relation and the number of a clause, got {other!r}")
    return _Clause(name, count, record.get("color"), position)
