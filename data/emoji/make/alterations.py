"""What can go wrong with a sprite: bent, cut, faded, scrambled, or half another one.

The detector learns from these (``detector.py``), because generators draw such things and a clean
rendering never shows them. Every function takes a sprite as an RGBA image and says how much of a thing it
still is. Nothing here comes from a generated image.

Conventions: sprites are PIL images in mode RGBA; shares are in [0, 1]; chance comes from an explicit
``numpy`` generator.
"""

import math
from enum import Enum

import numpy as np
from jaxtyping import Float
from PIL import Image

MARGIN = 5  # pixels around a sprite into which it may bend
BLENDS = ("halves", "alpha", "blob", "face")  # ways to blend that the detector is trained on
UNTRAINED_BLENDS = ("quarters", "stripes")  # ways it is only tested on


class Still(Enum):
    """How far an altered sprite is still the thing it was."""

    THERE = "there"
    UNSURE = "unsure"  # people would differ: neither asked for nor punished
    GONE = "gone"


def judged(share: float, unsure: float, there: float) -> Still:
    """Return the verdict for a share of a thing, given the shares from which it is unsure and there."""
    return Still.THERE if share >= there else Still.UNSURE if share >= unsure else Still.GONE


def bent(rng: np.random.Generator, sprite: Image.Image) -> tuple[Image.Image, Still]:
    """Return the sprite turned by up to 18 degrees, stretched and warped."""
    wide = Image.new("RGBA", (sprite.width + 2 * MARGIN, sprite.height + 2 * MARGIN))
    wide.paste(sprite, (MARGIN, MARGIN))
    angle = math.radians(rng.uniform(-18, 18))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn = turn @ np.diag(rng.uniform(0.88, 1.15, 2))
    size = np.array(wide.size, float)
    nodes = np.stack(np.meshgrid(*(np.linspace(0, 1, 4),) * 2, indexing="xy"), -1) * size
    source = (nodes - size / 2) @ turn.T + size / 2 + rng.normal(0, 0.03 * max(sprite.size), nodes.shape)
    mesh = []
    for row in range(3):
        for column in range(3):
            left, top = nodes[row, column].round().astype(int)
            right, bottom = nodes[row + 1, column + 1].round().astype(int)
            corners = ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))
            quad = tuple(float(v) for corner in corners for v in source[corner])
            mesh.append(((int(left), int(top), int(right), int(bottom)), quad))
    result = wide.transform(wide.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    return result, Still.THERE


def shifted(rng: np.random.Generator, sprite: Image.Image) -> tuple[Image.Image, Still]:
    """Return the sprite with each colour channel up to 25 % weaker or stronger."""
    pixels = np.asarray(sprite).astype(np.float32)
    pixels[..., :3] = (pixels[..., :3] * rng.uniform(0.75, 1.25, 3)).clip(0, 255)
    return Image.fromarray(pixels.round().astype(np.uint8), "RGBA"), Still.THERE


def faded(rng: np.random.Generator, sprite: Image.Image) -> tuple[Image.Image, Still]:
    """Return the sprite made transparent."""
    left = rng.uniform(0.05, 0.9)
    pixels = np.asarray(sprite).astype(np.float32)
    pixels[..., 3] *= left
    return Image.fromarray(pixels.round().astype(np.uint8), "RGBA"), judged(left, 0.15, 0.45)


def cut(rng: np.random.Generator, sprite: Image.Image) -> tuple[Image.Image, Still]:
    """Return the sprite without what lies beyond a random straight line."""
    left = rng.uniform(0.1, 0.95)
    pixels = np.asarray(sprite).astype(np.float32)
    pixels[..., 3] *= half_plane(rng, pixels[..., 3], left)
    return Image.fromarray(pixels.round().astype(np.uint8), "RGBA"), judged(left, 0.4, 0.7)


def scrambled(rng: np.random.Generator, sprite: Image.Image) -> tuple[Image.Image, Still]:
    """Return the sprite with its quarters moved round by one or two places."""
    pixels = np.asarray(sprite)
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    if min(height, width) < 4:
        return sprite, Still.UNSURE
    top, bottom = pixels[: height // 2, :width], pixels[height // 2 : height, :width]
    quarters = [top[:, : width // 2], top[:, width // 2 :], bottom[:, width // 2 :], bottom[:, : width // 2]]
    places = np.roll(np.arange(4), int(rng.integers(1, 4)))
    a, b, c, d = (quarters[place] for place in places)
    moved = np.concatenate([np.concatenate([a, b], 1), np.concatenate([d, c], 1)], 0)
    return Image.fromarray(np.ascontiguousarray(moved), "RGBA"), Still.GONE


def half_plane(
    rng: np.random.Generator, weight: Float[np.ndarray, "height width"], share: float
) -> Float[np.ndarray, "height width"]:
    """Return a mask, 1 on one side of a random line with a soft edge, that holds `share` of the weight."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]].astype(np.float32)
    return split(rng, x * math.cos(angle) + y * math.sin(angle), weight, share)


def split(
    rng: np.random.Generator,
    field: Float[np.ndarray, "height width"],
    weight: Float[np.ndarray, "height width"],
    share: float,
) -> Float[np.ndarray, "height width"]:
    """Return a mask, 1 where the field is low, that holds `share` of the weight."""
    order = np.argsort(field, axis=None)
    mass = np.cumsum(weight.reshape(-1)[order])
    level = field.reshape(-1)[order][np.searchsorted(mass, share * mass[-1]).clip(0, mass.size - 1)]
    softness = rng.uniform(0.05, 3.0) * (np.abs(np.gradient(field)).mean() + 1e-6)
    return 1 / (1 + np.exp(((field - level) / softness).clip(-30, 30)))


def blended(rng: np.random.Generator, first: Image.Image, second: Image.Image, kind: str, share: float) -> Image.Image:
    """Return `share` of the first sprite and the rest of the second, in the first one's frame.

    Args:
        rng: where chance comes from.
        first: sprite that keeps its size.
        second: sprite that is resized to it.
        kind: one of `BLENDS` or `UNTRAINED_BLENDS`.
        share: of the visible area that shows the first.

    Raises:
        ValueError: the kind is unknown.
    """
    one = np.asarray(first).astype(np.float32) / 255
    two = np.asarray(second.resize(first.size, Image.Resampling.LANCZOS)).astype(np.float32) / 255
    mask = blend_mask(rng, kind, np.maximum(one[..., 3], two[..., 3]), share)[..., None]
    alpha = mask * one[..., 3:] + (1 - mask) * two[..., 3:]
    colour = mask * one[..., 3:] * one[..., :3] + (1 - mask) * two[..., 3:] * two[..., :3]
    mixed = np.concatenate([colour / np.maximum(alpha, 1e-4), alpha], -1)
    return Image.fromarray((mixed.clip(0, 1) * 255).round().astype(np.uint8), "RGBA")


def blend_mask(
    rng: np.random.Generator, kind: str, weight: Float[np.ndarray, "height width"], share: float
) -> Float[np.ndarray, "height width"]:
    """Return where a blend of this kind shows its first sprite, in [0, 1]; see `blended`."""
    height, width = weight.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y / height - 0.5, x / width - 0.5
    if kind == "alpha":
        return np.full(weight.shape, share, np.float32)
    if kind == "halves":
        return half_plane(rng, weight, share)
    if kind == "blob":
        waves = rng.normal(0, 1, (5, 4))
        field = sum(a * np.sin(3 * (b * x + c * y) + 6 * d) for a, b, c, d in waves)
        return split(rng, field, weight, share)
    if kind == "face":  # the second inside the first's outline, or the other way round
        middle = rng.uniform(-0.1, 0.1, 2)
        radius = np.hypot(x - middle[0], (y - middle[1]) * rng.uniform(0.8, 1.2))
        return split(rng, radius if rng.random() < 0.5 else -radius, weight, share)
    if kind == "quarters":
        return ((x < 0) == (y < 0)).astype(np.float32)
    if kind == "stripes":
        along = y if rng.random() < 0.5 else x
        return split(rng, np.sin(2 * math.pi * along * rng.uniform(2, 4)), weight, share)
    raise ValueError(f"kind must be one of {BLENDS + UNTRAINED_BLENDS}, got {kind!r}")
