"""Which segment of the picture shows which phrase of the prompt.

Conventions: a mask is (height, width), true where the phrase is to be seen, on the CPU, of any size; `resized` brings
a layout to a map's. Boxes are ``(left, top, right, bottom)``. Segments do not overlap; pixels of no segment are
allowed. The phrase "" has no words: a background that nobody describes. No mask may be changed in place: a layout is
compared, hashed and named by what is in it.
Source: DenseDiffusion (ICCV 2023, arXiv 2308.12964), section 3; https://github.com/naver-ai/DenseDiffusion
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import PreTrainedTokenizerBase

from tracer.scenes import ANIMALS, COLOURS, OBJECTS, SIZE, SIZES, Scene, Thing, place, sprite_of
from tracer.words import Encoder, Span, places_of, targets_of

Box = tuple[float, float, float, float]  # shares of the picture
HALF = 127.5  # alpha, of 255
_JOINERS = ("a", "an", "and", "with")  # the emoji world's words besides nouns and colours
_PHRASE = re.compile(
    rf"\b(?:an?\s+)?(?:(?P<colour>{'|'.join(COLOURS)})\s+)?(?P<noun>{'|'.join(ANIMALS + OBJECTS)})\b", re.IGNORECASE
)
_REPEAT = re.compile(r"(?P<text>.+)#(?P<number>\d+)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of the picture and the phrase of the prompt that it shows, "" for none.

    Raises:
        ValueError: the mask is no boolean (height, width) with a pixel, or the phrase is white space.
    """

    phrase: str
    mask: Bool[Tensor, "height width"]

    def __post_init__(self) -> None:
        if self.phrase and not self.phrase.strip():
            raise ValueError(f'phrase must hold a word, or be "" for a segment without words, got {self.phrase!r}')
        if self.mask.dtype != torch.bool or self.mask.ndim != 2 or not self.mask.numel():
            raise ValueError(f"mask must be bool (height, width), got {self.mask.dtype} {tuple(self.mask.shape)}")
        object.__setattr__(self, "mask", self.mask.detach().cpu().clone(memory_format=torch.contiguous_format))

    def digest(self) -> str:
        """Return a fingerprint of phrase, size and pixels."""
        head = json.dumps([self.phrase, *self.mask.shape])
        return sha256(head.encode() + b"\n" + np.packbits(self.mask.numpy()).tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Segment) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())


@dataclass(frozen=True)
class Layout:
    """What is to be seen where: segments of one size that do not overlap, in the order in which they were described.

    Raises:
        ValueError: there is no segment, none has a pixel, their sizes differ, or two of them overlap.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        sizes = {tuple(segment.mask.shape) for segment in self.segments}
        if len(sizes) != 1:
            raise ValueError(f"segments must be one or more, of one size, got the sizes {sorted(sizes)}")
        if not any(segment.mask.any() for segment in self.segments):
            raise ValueError("at least one segment must have a pixel, got empty masks only")
        layers = self.masks.sum(0, dtype=torch.int16)
        if layers.max() > 1:
            row, column = divmod(int(layers.argmax()), layers.shape[1])
            both = [segment.phrase for segment in self.segments if segment.mask[row, column]]
            raise ValueError(f"segments must not overlap, got {both} at row {row}, column {column}")

    @property
    def phrases(self) -> tuple[str, ...]:
        """The segments' phrases, in order."""
        return tuple(segment.phrase for segment in self.segments)

    @property
    def masks(self) -> Bool[Tensor, "segment height width"]:
        """The segments' masks, in order."""
        return torch.stack([segment.mask for segment in self.segments])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.segments[0].mask.shape
        return height, width

    def digest(self) -> str:
        """Return a fingerprint of the content, the same for equal layouts on any machine."""
        return sha256("\n".join(segment.digest() for segment in self.segments).encode()).hexdigest()

    @staticmethod
    def from_boxes(
        boxes: Mapping[str, Box] | Sequence[tuple[str, Box]], size: tuple[int, int] = (64, 64), background: str = ""
    ) -> "Layout":
        """Return a layout of boxes, the background first: what no box covers.

        A pixel belongs to the last box that holds its centre: name the largest box first.

        Args:
            boxes: left, top, right and bottom of each phrase, as shares of the picture in [0, 1]; pairs where a
                phrase comes twice.
            size: height and width of the masks.
            background: the phrase of the rest, "" for none.

        Raises:
            ValueError: no box, a box that is none, or a phrase of which nothing can be seen.
        """
        if min(size) < 1:
            raise ValueError(f"size must be a height and a width of at least 1, got {size}")
        pairs = list(boxes.items() if isinstance(boxes, Mapping) else boxes)
        return _painted([phrase for phrase, _ in pairs], [_filled(*pair, size) for pair in pairs], background)

    @staticmethod
    def from_scene(scene: Scene, outlines: bool = True) -> "Layout":
        """Return a scene's own layout at its own size: background "", then what stands on it, as a caption names it.

        Args:
            scene: of the emoji world.
            outlines: the drawings' outlines, alpha above one half; if not, their boxes.

        Raises:
            ValueError: there is nothing in the scene, or a thing is hidden by later ones.
        """
        return _of_things(scene.things, [thing.phrase for thing in scene.things], outlines)


def layout_of_prompt(prompt: str, targets: Sequence[str], seed: int, outlines: bool = True) -> Layout | None:
    """Return a random layout for a prompt of the emoji world, None if a word of the prompt is not of that world.

    These layouts are of our own making: no benchmark has them, and results with them compare with no paper's. Places,
    sizes and mirroring are drawn as the world's training scenes draw them, from the seed and the prompt's text.

    Args:
        prompt: such as "a cat and a pink apple".
        targets: words of the things to place, as `tracer.words` reads them; the others are left to the background.
        seed: of the places, 0 or more.
        outlines: see `Layout.from_scene`.

    Returns:
        The background "" and the things in prompt order, phrases as the prompt writes them ("a pink apple"); None
        also for more things than the world's scenes hold.

    Raises:
        ValueError: a target is not in the prompt or names no thing, there is none, or the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if not targets:
        raise ValueError("targets must name at least one thing of the prompt, got none")
    known = {*ANIMALS, *OBJECTS, *COLOURS, *_JOINERS}
    if not all(word.lower() in known for word in re.findall(r"\w+", prompt)):
        return None
    asked = [(target, _span(prompt, target)) for target in targets]
    named = list(_PHRASE.finditer(prompt))
    for target, (start, end) in asked:
        if not any(match.start() <= start and end <= match.end() for match in named):
            raise ValueError(f"target {target!r} must name one thing, with its colour or without, in {prompt!r}")
    chosen = [m for m in named if any(m.start() <= start and end <= m.end() for _, (start, end) in asked)]
    if len(chosen) > max(SIZES):
        return None
    rng = np.random.default_rng([seed, int.from_bytes(sha256(prompt.encode()).digest()[:8])])
    words = tuple(match["noun"].lower() for match in chosen)
    scene = place(rng, words, [match["colour"] and match["colour"].lower() for match in chosen])
    return _of_things(scene.things, [match[0] for match in chosen], outlines)


def resized(layout: Layout, height: int, width: int) -> Bool[Tensor, "segment height width"]:
    """Return the segments' masks at a map's size, by the nearest pixel as torch's ``interpolate`` takes it.

    Raises:
        ValueError: height or width is below 1.
    """
    if min(height, width) < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    return interpolate(layout.masks[None].float(), size=(height, width), mode="nearest")[0] > 0.5


def vanished(layout: Layout, height: int, width: int) -> tuple[str, ...]:
    """Return the phrases of the segments that have no pixel left at a map's size."""
    kept = resized(layout, height, width).flatten(1).any(1).tolist()
    return tuple(phrase for phrase, is_kept in zip(layout.phrases, kept, strict=True) if not is_kept)


def placed(
    tokenizer: PreTrainedTokenizerBase | Sequence[Encoder], prompt: str, layout: Layout
) -> tuple[tuple[int, ...], ...]:
    """Return each segment's token positions: where its phrase stands in the prompt, () for the phrase "".

    No token has two segments. Longer phrases choose first, then the order of the segments decides; each gets the first
    occurrence that is still free. So of two segments "a cat" the first gets the first cat, and the second the second,
    where DenseDiffusion's code gives both the first.

    Args:
        tokenizer: of the text encoder, or all encoders whose tokens the model sees, see `tracer.words`.
        prompt: the text as the pipeline gets it.
        layout: with phrases that the prompt holds as whole words; "cat#2" is the second cat.

    Raises:
        ValueError: a phrase is not in the prompt, or all its words there belong to other segments.
    """
    positions: list[tuple[int, ...]] = [()] * len(layout.segments)
    taken: dict[int, str] = {}
    places = {phrase: places_of(prompt, phrase) for phrase in layout.phrases if phrase}
    order = [index for index, phrase in enumerate(layout.phrases) if phrase]
    # what is not found as it stands, "cat#2", leaves no choice
    for index in sorted(order, key=lambda i: (bool(places[layout.phrases[i]]), -len(layout.phrases[i].split()))):
        phrase = layout.phrases[index]
        found = [targets_of(tokenizer, prompt, [span])[0].positions for span in places[phrase] or [phrase]]
        free = next((every for every in found if not taken.keys() & set(every)), None)
        if free is None:
            others = sorted({taken[position] for every in found for position in every if position in taken})
            raise ValueError(
                f"every segment must have words of its own, got {phrase!r}, of which the prompt has {len(found)},"
                f" taken by {', '.join(map(repr, others))}"
            )
        positions[index] = free
        taken |= dict.fromkeys(free, phrase)
    return tuple(positions)


def _painted(phrases: Sequence[str], shapes: Sequence[Bool[Tensor, "height width"]], background: str) -> Layout:
    """Return a layout in which later shapes lie above earlier ones, the background first, if there is any left."""
    if not shapes:
        raise ValueError("a layout must show at least one thing, got none")
    rest = torch.ones_like(shapes[0])
    segments: list[Segment] = []
    for phrase, shape in zip(reversed(phrases), reversed(shapes), strict=True):
        segments.insert(0, Segment(phrase, shape & rest))
        rest = rest & ~shape
    if background or rest.any():
        segments.insert(0, Segment(background, rest))
    for segment in segments:
        if not segment.mask.any():
            raise ValueError(
                f"{segment.phrase!r} must be seen, but has no pixel: draw the largest first, or none so thin"
            )
    return Layout(tuple(segments))


def _filled(phrase: str, box: Box, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"a box must be 0 <= left < right <= 1, 0 <= top < bottom <= 1, got {box} for {phrase!r}")
    rows, columns = ((torch.arange(side, dtype=torch.float64) + 0.5) / side for side in size)
    return ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))


def _of_things(things: Sequence[Thing], phrases: Sequence[str], outlines: bool) -> Layout:
    shapes: list[Tensor] = []
    for thing in things:
        canvas = Image.new("L", (SIZE, SIZE))
        if outlines:
            canvas.paste(_alpha(thing), thing.box[:2])
        else:
            canvas.paste(255, thing.box)
        shapes.append(torch.from_numpy(np.asarray(canvas) > HALF))
    return _painted(phrases, shapes, "")


def _alpha(thing: Thing) -> Image.Image:
    """Return how opaque a thing's drawing is, at its size in the scene, as `tracer.scenes.render` draws it."""
    left, top, right, bottom = thing.box
    sprite = sprite_of(thing.word, thing.colour).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    if thing.mirrored:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return sprite.getchannel("A")


def _span(prompt: str, target: str) -> Span:
    """Return where a target stands in the prompt; "cat#2" is the second cat."""
    repeat = _REPEAT.fullmatch(target)
    text, number = (repeat["text"], int(repeat["number"])) if repeat else (target, 1)
    spans = places_of(prompt, text)
    if not 1 <= number <= len(spans):
        raise ValueError(f"target {target!r} must stand in the prompt, got {prompt!r} with {len(spans)} {text!r}")
    return spans[number - 1]
