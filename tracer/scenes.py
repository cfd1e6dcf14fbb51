"""The emoji world's scenes: which things can stand together, and how they are drawn.

Conventions: pictures are 64x64 RGB, uint8, ``height width channel``; boxes are ``(left, top, right,
bottom)`` in pixels, right and bottom exclusive; chance comes from an explicit ``numpy`` generator.
Source: drawings from Noto Color Emoji (see ``data/emoji/NOTICE``); prompts follow the templates of
Attend-and-Excite (arXiv 2301.13826, section 5).
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tracer.folders import emoji_world

SIZE = 64  # pixels a side
ANIMALS = (
    "cat", "dog", "bird", "bear", "lion", "horse",
    "elephant", "monkey", "frog", "turtle", "rabbit", "mouse",
)  # fmt: skip
OBJECTS = (
    "backpack", "glasses", "crown", "suitcase", "chair", "balloon",
    "bow", "car", "bowl", "bench", "clock", "apple",
)  # fmt: skip
WORN = ("glasses", "bow", "crown")  # what an animal is "with" in the benchmark's prompts
COLOURS = {
    "red": (224, 36, 36), "orange": (255, 140, 20), "yellow": (255, 222, 30),
    "green": (40, 170, 60), "blue": (40, 90, 230), "purple": (140, 50, 190),
    "pink": (255, 130, 190), "brown": (130, 80, 40), "gray": (135, 135, 135),
    "black": (48, 48, 48), "white": (255, 255, 255),
}  # fmt: skip
HELD_OUT_SHARE = 0.2  # of the noun pairs never stand in one training scene
HELD_OUT_SEED = 2403_06381
SIZES = {1: (26, 34), 2: (22, 32), 3: (20, 23)}  # longest side in pixels, by how many things there are
COUNTS = (0.3, 0.6, 0.1)  # shares of scenes with one, two, three things
COLOURED = 0.5  # share of objects that are drawn, and captioned, in a colour
OVERLAP = 0.06  # largest allowed overlap of two boxes, as a share of the smaller


@dataclass(frozen=True)
class Thing:
    """One sprite in a scene: its word, its colour (None = as drawn), its box, and whether it is mirrored."""

    word: str
    colour: str | None
    box: tuple[int, int, int, int]
    mirrored: bool = False

    @property
    def phrase(self) -> str:
        """The thing as a caption names it, with its article."""
        return article(self.word if self.colour is None else f"{self.colour} {self.word}")


@dataclass(frozen=True)
class Scene:
    """A picture's content: its background colour and what stands on it, in caption order."""

    background: tuple[int, int, int]
    things: tuple[Thing, ...]


def article(phrase: str) -> str:
    """Return the phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


@cache
def held_out_pairs() -> frozenset[frozenset[str]]:
    """Return the noun pairs that no training scene shows: 20 % of each kind of pair."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    mixed = [(a, o) for a in ANIMALS for o in OBJECTS]
    held: list[frozenset[str]] = []
    for kind in (list(combinations(ANIMALS, 2)), mixed, list(combinations(OBJECTS, 2))):
        chosen = rng.choice(len(kind), round(HELD_OUT_SHARE * len(kind)), replace=False)
        held += [frozenset(kind[i]) for i in chosen]
    return frozenset(held)


def is_seen(words: tuple[str, ...]) -> bool:
    """Return whether no two of the words make a held-out pair."""
    return all(frozenset(pair) not in held_out_pairs() for pair in combinations(words, 2))


def caption(things: tuple[Thing, ...], joiners: tuple[str, ...] = ()) -> str:
    """Return the caption that names the things in order, "and" between them unless told otherwise.

    Raises:
        ValueError: there is nothing to name.
    """
    if not things:
        raise ValueError("a caption must name at least one thing")
    text = things[0].phrase
    for index, thing in enumerate(things[1:]):
        text += f" {joiners[index] if index < len(joiners) else 'and'} {thing.phrase}"
    return text


def sample_words(rng: np.random.Generator, count: int, seen_only: bool = True) -> tuple[str, ...]:
    """Return `count` different nouns in random order; with `seen_only`, no held-out pair among them."""
    nouns = ANIMALS + OBJECTS
    while True:
        words = tuple(nouns[i] for i in rng.choice(len(nouns), count, replace=False))
        if not seen_only or is_seen(words):
            return words


def sample_scene(rng: np.random.Generator, seen_only: bool = True, count: int | None = None) -> Scene:
    """Return a random scene of one to three things that hardly overlap.

    Args:
        rng: where chance comes from.
        seen_only: leave out the held-out pairs, as in training.
        count: how many things, or None for the world's own mixture.
    """
    count = count or int(rng.choice(len(COUNTS), p=COUNTS)) + 1
    words = sample_words(rng, count, seen_only)
    colours = [None if w in ANIMALS or rng.random() >= COLOURED else str(rng.choice(list(COLOURS))) for w in words]
    return place(rng, words, colours)


def place(rng: np.random.Generator, words: tuple[str, ...], colours: list[str | None]) -> Scene:
    """Return a scene of the given things at random places, sizes and flips."""
    while True:
        things: list[Thing] = []
        for word, colour in zip(words, colours, strict=True):
            thing = Thing(word, colour, _random_box(rng, word, SIZES[len(words)]), bool(rng.random() < 0.5))
            if all(overlap(thing.box, other.box) <= OVERLAP for other in things):
                things.append(thing)
        if len(things) == len(words):
            background = tuple(int(v) for v in rng.integers(205, 250, 3))
            return Scene((background[0], background[1], background[2]), tuple(things))


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Return the boxes' common area as a share of the smaller box, in [0, 1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0, width) * max(0, height) / smaller


def _random_box(rng: np.random.Generator, word: str, sizes: tuple[int, int]) -> tuple[int, int, int, int]:
    sprite = sprite_of(word, None)
    longest = int(rng.integers(sizes[0], sizes[1] + 1))
    width = max(1, round(sprite.width * longest / max(sprite.size)))
    height = max(1, round(sprite.height * longest / max(sprite.size)))
    left, top = int(rng.integers(0, SIZE - width + 1)), int(rng.integers(0, SIZE - height + 1))
    return left, top, left + width, top + height


@cache
def sprite_of(word: str, colour: str | None) -> Image.Image:
    """Return the sprite as RGBA, cropped; a colour multiplies its stretched luminance.

    Raises:
        ValueError: the world has no such word or colour.
    """
    if word not in ANIMALS + OBJECTS:
        raise ValueError(f"{word!r} is not in the emoji world; its nouns are {', '.join(ANIMALS + OBJECTS)}")
    if colour is not None and colour not in COLOURS:
        raise ValueError(f"{colour!r} is not in the emoji world; its colours are {', '.join(COLOURS)}")
    layout, atlas = _atlas()
    index, cell = layout["words"].index(word), layout["cell"]
    left, top = index % layout["columns"] * cell, index // layout["columns"] * cell
    sprite = atlas.crop((left, top, left + cell, top + cell))
    sprite = sprite.crop(sprite.getchannel("A").getbbox())
    return sprite if colour is None else _tint(sprite, COLOURS[colour])


@cache
def _atlas() -> tuple[dict[str, Any], Image.Image]:
    with Image.open(emoji_world() / "atlas.png") as atlas:
        return json.loads((emoji_world() / "atlas.json").read_text()), atlas.convert("RGBA")


def _tint(sprite: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    pixels = np.asarray(sprite).astype(np.float32)
    luminance = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    low, high = np.quantile(luminance[pixels[..., 3] > 128], [0.02, 0.9])
    stretched = 0.35 + 0.65 * np.clip((luminance - low) / max(high - low, 1.0), 0, 1)
    rgb = stretched[..., None] * np.array(colour, np.float32)
    return Image.fromarray(np.concatenate([rgb, pixels[..., 3:]], -1).round().astype(np.uint8), "RGBA")


def render(scene: Scene) -> UInt8[np.ndarray, "height width channel"]:
    """Return the picture of a scene, 64x64 RGB."""
    canvas = Image.new("RGB", (SIZE, SIZE), scene.background)
    for thing in scene.things:
        left, top, right, bottom = thing.box
        sprite = sprite_of(thing.word, thing.colour).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        if thing.mirrored:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas.paste(sprite, (left, top), sprite)
    return np.asarray(canvas)


def captioned(rng: np.random.Generator, noise: float) -> tuple[Scene, str]:
    """Return a training scene and its caption; a share `noise` of two-thing captions names one thing too many.

    The scene then lacks one of the two named things, as web pictures lack things that their alt text names.

    Args:
        rng: where chance comes from.
        noise: share of two-thing captions with a thing missing from the picture, in [0, 1].
    """
    scene = sample_scene(rng)
    joiners = ()
    words = [thing.word for thing in scene.things]
    if len(words) > 1 and words[0] in ANIMALS and words[1] in WORN and rng.random() < 0.5:
        joiners = ("with",)
    text = caption(scene.things, joiners)
    if len(words) == 2 and rng.random() < noise:
        kept = scene.things[int(rng.integers(2))]
        box = _random_box(rng, kept.word, SIZES[1])
        scene = replace(scene, things=(replace(kept, box=box),))
    return scene, text
