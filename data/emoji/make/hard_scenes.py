"""Rendered scenes with altered sprites, and what is to be found in them; see ``alterations.py``.

Conventions: pictures are 64x64 RGB, uint8; boxes are ``(left, top, right, bottom)`` in pixels, as in
``tracer/scenes.py``; chance comes from an explicit ``numpy`` generator.
"""

from dataclasses import dataclass

import numpy as np
from alterations import BLENDS, Still, bent, blended, cut, faded, judged, scrambled, shifted
from jaxtyping import UInt8
from PIL import Image

from tracer.scenes import (
    ANIMALS,
    COLOURED,
    COLOURS,
    OBJECTS,
    SIZE,
    Scene,
    is_seen,
    overlap,
    render,
    sprite_of,
)

NOUNS = ANIMALS + OBJECTS
COUNTS = (0.4, 0.38, 0.17, 0.05)  # shares of hard scenes with one to four things
SIZES = {1: (20, 40), 2: (18, 34), 3: (17, 25), 4: (16, 21)}  # longest side in pixels
TWICE = 0.15  # share of the things whose word already stands in the scene: generators draw two dogs
CROWDED = 0.3  # share of the scenes in which boxes may overlap by `CLOSE`
CLOSE = 0.22
COLOURED_ANIMAL = 0.08  # generators let colours leak
ALTERATIONS = {
    "none": 0.32,
    "bent": 0.2,
    "shifted": 0.06,
    "cut": 0.09,
    "faded": 0.05,
    "scrambled": 0.04,
    "blend": 0.24,
}
EVEN = (0.35, 0.65)  # shares of an even blend's first animal
SURE_BLEND, UNSURE_BLEND = 0.78, 0.6  # shares of a blend from which it is, and may be, its larger part
Box = tuple[int, int, int, int]
Found = list[tuple[str, Still]]  # what a sprite shows, and how far it is still that


@dataclass(frozen=True)
class Label:
    """One thing in a picture: its word, the box of what is visible, and whether people would agree."""

    word: str
    box: Box
    sure: bool = True


@dataclass(frozen=True)
class Picture:
    """A picture and what is to be found in it."""

    pixels: UInt8[np.ndarray, "height width channel"]
    labels: tuple[Label, ...]


def plain(scene: Scene) -> Picture:
    """Return the rendering of a scene with its labels."""
    return Picture(render(scene), tuple(Label(thing.word, thing.box) for thing in scene.things))


def hard_picture(rng: np.random.Generator) -> Picture:
    """Return a random scene of one to four things, many of them altered; no held-out pair in it."""
    count = int(rng.choice(4, p=COUNTS)) + 1
    words = sample_words(rng, count)
    canvas = Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in rng.integers(205, 250, 3)))
    labels: list[Label] = []
    for word, box in zip(words, sample_boxes(rng, words), strict=True):
        sprite, found = altered(rng, word, (box[2] - box[0], box[3] - box[1]))
        placed = paste(canvas, sprite, box)
        labels += as_labels(found, placed)
    return Picture(np.asarray(canvas), tuple(labels))


def as_labels(found: Found, box: Box) -> list[Label]:
    """Return labels of what is still there, all with the same box."""
    return [Label(word, box, still is Still.THERE) for word, still in found if still is not Still.GONE]


def sample_words(rng: np.random.Generator, count: int) -> list[str]:
    """Return nouns of which no two make a held-out pair; some are there twice."""
    words = [str(rng.choice(NOUNS))]
    while len(words) < count:
        word = words[0] if rng.random() < TWICE else str(rng.choice(NOUNS))
        if all(word == other or is_seen((word, other)) for other in words):
            words.append(word)
    return words


def sample_boxes(rng: np.random.Generator, words: list[str]) -> list[Box]:
    """Return a box for every word, none of which covers much of another."""
    most = CLOSE if rng.random() < CROWDED else 0.06
    while True:
        boxes = [random_box(rng, word, SIZES[len(words)]) for word in words]
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        if all(overlap(a, b) <= most for a, b in pairs):
            return boxes


def random_box(rng: np.random.Generator, word: str, sizes: tuple[int, int]) -> Box:
    """Return a box in the sprite's proportions at a random place, its longest side in the given range."""
    sprite = sprite_of(word, None)
    scale = int(rng.integers(sizes[0], sizes[1] + 1)) / max(sprite.size)
    width, height = max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale))
    left, top = int(rng.integers(0, SIZE - width + 1)), int(rng.integers(0, SIZE - height + 1))
    return left, top, left + width, top + height


def random_sprite(rng: np.random.Generator, word: str, size: tuple[int, int]) -> Image.Image:
    """Return the word's sprite at a size, perhaps coloured and mirrored."""
    coloured = rng.random() < (COLOURED_ANIMAL if word in ANIMALS else COLOURED)
    sprite = sprite_of(word, str(rng.choice(list(COLOURS))) if coloured else None)
    sprite = sprite.resize(size, Image.Resampling.LANCZOS)
    return sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else sprite


def altered(rng: np.random.Generator, word: str, size: tuple[int, int]) -> tuple[Image.Image, Found]:
    """Return the word's sprite after a random alteration, and what it still shows."""
    sprite = random_sprite(rng, word, size)
    name = str(rng.choice(list(ALTERATIONS), p=list(ALTERATIONS.values())))
    if name == "none":
        return sprite, [(word, Still.THERE)]
    if name == "blend":
        return blend(rng, word, sprite)
    change = {"bent": bent, "shifted": shifted, "cut": cut, "faded": faded, "scrambled": scrambled}[name]
    sprite, still = change(rng, sprite)
    return sprite, [(word, still)]


def blend(rng: np.random.Generator, word: str, sprite: Image.Image) -> tuple[Image.Image, Found]:
    """Return a blend with another thing: the larger part if it is large enough, never both."""
    kind = ANIMALS if word in ANIMALS and rng.random() < 0.8 else NOUNS
    others = [noun for noun in kind if noun != word and is_seen((word, noun))]
    other = str(rng.choice(others))
    share = rng.uniform(*EVEN) if rng.random() < 0.5 else rng.uniform(0.08, 0.92)
    mixed = blended(rng, sprite, random_sprite(rng, other, sprite.size), str(rng.choice(BLENDS)), share)
    if rng.random() < 0.3:
        mixed, _ = bent(rng, mixed)
    return mixed, blend_labels(word, other, share)


def blend_labels(word: str, other: str, share: float) -> Found:
    """Return what a blend still shows, given the share of its first word."""
    return [
        (word, judged(share, UNSURE_BLEND, SURE_BLEND)),
        (other, judged(1 - share, UNSURE_BLEND, SURE_BLEND)),
    ]


def paste(canvas: Image.Image, sprite: Image.Image, box: Box) -> Box:
    """Draw the sprite centred on the box and return the box of what it visibly covers, inside the picture."""
    left = (box[0] + box[2] - sprite.width) // 2
    top = (box[1] + box[3] - sprite.height) // 2
    canvas.paste(sprite, (left, top), sprite)
    inside = sprite.getchannel("A").point(lambda value: 255 * (value > 20)).getbbox()
    if inside is None:
        return box
    x0, y0, x1, y1 = inside
    clip = [min(max(v, 0), SIZE) for v in (left + x0, top + y0, left + x1, top + y1)]
    return clip[0], clip[1], max(clip[2], clip[0] + 1), max(clip[3], clip[1] + 1)


def even_blend(rng: np.random.Generator) -> Picture:
    """Return a picture of one even blend of two animals of a pair seen in training, and nothing else."""
    while True:
        first, second = (str(word) for word in rng.choice(ANIMALS, 2, replace=False))
        if is_seen((first, second)):
            break
    box = random_box(rng, first, (24, 36))
    kind = str(rng.choice(BLENDS, p=[0.5, 0.1, 0.2, 0.2]))
    mixed = blended(rng, drawn(rng, first, box), drawn(rng, second, box), kind, rng.uniform(*EVEN))
    return alone(rng, mixed, box)


def drawn(rng: np.random.Generator, word: str, box: Box) -> Image.Image:
    """Return the word's sprite at the box's size, perhaps mirrored."""
    sprite = sprite_of(word, None).resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
    return sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else sprite


def alone(rng: np.random.Generator, sprite: Image.Image, box: Box, word: str | None = None) -> Picture:
    """Return a picture of one sprite on a plain background, labelled if there is a word for it."""
    canvas = Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in rng.integers(205, 250, 3)))
    placed = paste(canvas, sprite, box)
    return Picture(np.asarray(canvas), () if word is None else (Label(word, placed),))
