"""Scenes that differ in one thing, from which the emoji world's CLIP and its features learn and are measured.

Conventions: as in ``detector_data.py``, but a label row is the noun's index (-1 = no label), left, top, right,
bottom in pixels, and the colour's index (-1 = as drawn). Pictures that belong together follow one another: *twins*
are a scene and the same with one change; a *family* is a scene, and the same with one coloured object moved by 1 to
3 pixels, in another colour, and removed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from alterations import BLENDS, blended
from detector_data import MOST, NOISE, NOISY, Labels, Pixels, through
from diffusers import AutoencoderKL
from hard_scenes import EVEN, NOUNS, Box, drawn
from PIL import Image

from tracer.scenes import (
    ANIMALS,
    COLOURED,
    COLOURS,
    OVERLAP,
    SIZE,
    WORN,
    Scene,
    Thing,
    caption,
    is_seen,
    overlap,
    render,
    sample_scene,
    sprite_of,
)

HUES = tuple(COLOURS)
KINDS = {"renamed": 0.3, "missing": 0.2, "extra": 0.15, "recoloured": 0.2, "exchanged": 0.15}  # and their shares
SHIFT = 3  # pixels: the farthest that a moved object goes along either side
Things = tuple[Thing, ...]
Key = frozenset[tuple[str, str | None]]
NOWHERE = (0, 0, 1, 1)  # box of a thing that only a caption names


def key_of(things: Things) -> Key:
    """Return what a caption says, whatever its order: two captions with one key say the same."""
    return frozenset((thing.word, thing.colour) for thing in things)


def captioned_as(rng: np.random.Generator, things: Things) -> str:
    """Return a caption as `tracer.scenes.captioned` words it."""
    worn = len(things) > 1 and things[0].word in ANIMALS and things[1].word in WORN
    return caption(things, ("with",) if worn and rng.random() < 0.5 else ())


def changed(rng: np.random.Generator, things: Things, kind: str, seen_only: bool = True) -> Things | None:
    """Return the things with one change of a kind of `KINDS`, or None if there is nothing to change so.

    Args:
        rng: where chance comes from.
        things: what stands in a scene.
        kind: "renamed", another noun in a thing's place; "missing", a thing less; "extra", one more, without a
            place; "recoloured", another colour of a coloured object; "exchanged", two objects' colours exchanged.
        seen_only: bring no held-out pair about.
    """
    words = [thing.word for thing in things]
    if kind == "missing":
        drop = int(rng.integers(len(things)))
        return things[:drop] + things[drop + 1 :] if len(things) > 1 else None
    if kind == "exchanged":
        objects = [i for i, word in enumerate(words) if word not in ANIMALS]
        pairs = [(i, j) for i in objects for j in objects if i < j and things[i].colour != things[j].colour]
        if not pairs:
            return None
        i, j = pairs[int(rng.integers(len(pairs)))]
        return put(
            put(things, i, replace(things[i], colour=things[j].colour)), j, replace(things[j], colour=things[i].colour)
        )
    if kind == "recoloured":
        coloured = [i for i, thing in enumerate(things) if thing.colour is not None]
        if not coloured:
            return None
        i = int(rng.choice(coloured))
        return put(things, i, replace(things[i], colour=other_colour(rng, things[i].colour)))
    at = len(things) if kind == "extra" else int(rng.integers(len(things)))
    rest = words[:at] + words[at + 1 :]
    fitting = [n for n in NOUNS if n not in words and (not seen_only or all(is_seen((n, w)) for w in rest))]
    if not fitting or at == 3:
        return None
    word = str(rng.choice(fitting))
    if kind == "extra":
        return (*things, Thing(word, random_colour(rng, word), NOWHERE))
    old = things[at]
    colour = None if word in ANIMALS else random_colour(rng, word) if old.word in ANIMALS else old.colour
    return put(things, at, replace(old, word=word, colour=colour, box=refitted(word, old.box)))


def put(things: Things, index: int, thing: Thing) -> Things:
    """Return the things with one replaced."""
    return (*things[:index], thing, *things[index + 1 :])


def random_colour(rng: np.random.Generator, word: str) -> str | None:
    """Return a colour as scenes have them: none for animals, one for half of the objects."""
    return None if word in ANIMALS or rng.random() >= COLOURED else str(rng.choice(HUES))


def other_colour(rng: np.random.Generator, colour: str | None) -> str:
    """Return any colour but this one."""
    return str(rng.choice([hue for hue in HUES if hue != colour]))


def refitted(word: str, box: Box) -> Box:
    """Return a box of the word's proportions with the middle and the longest side of another, inside the picture."""
    sprite = sprite_of(word, None)
    scale = max(box[2] - box[0], box[3] - box[1]) / max(sprite.size)
    width, height = max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale))
    left = min(max(0, (box[0] + box[2] - width) // 2), SIZE - width)
    top = min(max(0, (box[1] + box[3] - height) // 2), SIZE - height)
    return left, top, left + width, top + height


def contrasts(rng: np.random.Generator, things: Things, count: int) -> list[Things]:
    """Return so many things with one change each, of random kinds, all different; for captions that are wrong."""
    found: dict[Key, Things] = {}
    while len(found) < count:
        other = changed(rng, things, str(rng.choice(list(KINDS), p=list(KINDS.values()))))
        if other is not None:
            found[key_of(other)] = other
    return list(found.values())


def family(rng: np.random.Generator, seen_only: bool = True) -> tuple[Scene, Scene, Scene, Scene]:
    """Return a scene, and it with one coloured object moved, recoloured, and removed."""
    while True:
        scene = sample_scene(rng, seen_only)
        coloured = [i for i, thing in enumerate(scene.things) if thing.colour is not None]
        if not coloured:
            continue
        i = int(rng.choice(coloured))
        thing, others = scene.things[i], scene.things[:i] + scene.things[i + 1 :]
        box = nearby(rng, thing.box)
        if box is not None and all(overlap(box, other.box) <= OVERLAP for other in others):
            away = replace(scene, things=put(scene.things, i, replace(thing, box=box)))
            hue = replace(thing, colour=other_colour(rng, thing.colour))
            return scene, away, replace(scene, things=put(scene.things, i, hue)), replace(scene, things=others)


def nearby(rng: np.random.Generator, box: Box) -> Box | None:
    """Return the box 1 to `SHIFT` pixels away, along either side or both, or None if that leaves the picture."""
    dx, dy = (int(v) for v in rng.integers(-SHIFT, SHIFT + 1, 2))
    left, top, right, bottom = box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy
    inside = min(left, top) >= 0 and max(right, bottom) <= SIZE
    return (left, top, right, bottom) if (dx or dy) and inside else None


def blend_in(
    rng: np.random.Generator, scene: Scene, kinds: Sequence[str] = BLENDS, seen_only: bool = True
) -> tuple[Pixels, np.ndarray]:
    """Return a scene's picture with an even blend of two nouns in one thing's place, and its labels without either."""
    at = int(rng.integers(len(scene.things)))
    thing = scene.things[at]
    rest = replace(scene, things=scene.things[:at] + scene.things[at + 1 :])
    others = [noun for noun in NOUNS if noun != thing.word and (not seen_only or is_seen((noun, thing.word)))]
    one, two = (drawn(rng, word, thing.box) for word in (thing.word, str(rng.choice(others))))
    sprite = blended(rng, one, two, str(rng.choice(kinds)), rng.uniform(*EVEN))
    canvas = Image.fromarray(render(rest))
    canvas.paste(sprite, thing.box[:2], sprite)
    return np.asarray(canvas), as_rows(rest)


def blends(seed: int, count: int) -> tuple[Pixels, Labels]:
    """Return `count` pictures with a blend each."""
    made = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        made.append(blend_in(rng, sample_scene(rng)))
    return np.stack([pixels for pixels, _ in made]), np.stack([rows for _, rows in made])


def as_rows(scene: Scene) -> np.ndarray:
    """Return a scene's labels as numbers."""
    rows = np.full((MOST, 6), -1, np.float32)
    for row, thing in zip(rows, scene.things, strict=False):
        row[:] = (NOUNS.index(thing.word), *thing.box, -1 if thing.colour is None else HUES.index(thing.colour))
    return rows


def as_things(rows: np.ndarray) -> Things:
    """Return the things that label rows name."""
    return tuple(
        Thing(
            NOUNS[int(row[0])],
            None if row[5] < 0 else HUES[int(row[5])],
            (int(row[1]), int(row[2]), int(row[3]), int(row[4])),
        )
        for row in rows
        if row[0] >= 0
    )


def drawn_all(scenes: Sequence[Scene]) -> tuple[Pixels, Labels]:
    """Return the pictures of scenes and their labels."""
    return np.stack([render(scene) for scene in scenes]), np.stack([as_rows(scene) for scene in scenes])


def twins(seed: int, count: int) -> tuple[Pixels, Labels]:
    """Return `count` pairs of pictures that differ in one thing."""
    scenes: list[Scene] = []
    kinds = [kind for kind in KINDS if kind != "extra"]  # from the other twin's side, "missing" is that
    shares = np.array([KINDS[kind] for kind in kinds])
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        scene = sample_scene(rng)
        other = None
        while other is None:
            other = changed(rng, scene.things, str(rng.choice(kinds, p=shares / shares.sum())))
        scenes += [scene, replace(scene, things=other)]
    return drawn_all(scenes)


def families(seed: int, count: int, seen_only: bool = True) -> tuple[Pixels, Labels]:
    """Return `count` families of four pictures each."""
    return drawn_all([s for index in range(count) for s in family(np.random.default_rng((seed, index)), seen_only)])


def decoded(
    vae: AutoencoderKL, seed: int, make: Callable[[], tuple[Pixels, Labels]], noisy: bool
) -> tuple[Pixels, Labels]:
    """Return pictures after a pass through the autoencoder; if `noisy`, many with noise on their latents."""
    pixels, labels = make()
    rng = np.random.default_rng((seed, len(pixels)))
    noise = rng.uniform(0, NOISE, len(pixels)) * (rng.random(len(pixels)) < NOISY) * noisy
    return through(vae, pixels, pixels, np.ones(len(pixels), np.float32), noise.astype(np.float32), seed), labels


def half_decoded(vae: AutoencoderKL, seed: int, pixels: Pixels, group: int = 1) -> Pixels:
    """Return pictures, a random half of them passed through the autoencoder; groups of `group` stay together."""
    chosen = np.repeat(np.random.default_rng(seed).random(len(pixels) // group) < 0.5, group)
    result, part = pixels.copy(), pixels[chosen]
    ones = np.ones(len(part), np.float32)
    result[chosen] = through(vae, part, part, ones, 0 * ones, seed)
    return result


def on_cells(labels: Labels, middles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which noun and which colour each cell of a map shows, "batch cell", as indices.

    Args:
        labels: of the pictures.
        middles: the cells' middles, "cell 2" (across, down) in pixels.

    Returns:
        nouns, with ``len(NOUNS)`` for none and -100 for cells on a thing's rim, which are not asked; colours, with
        ``len(HUES)`` for things as drawn and -100 wherever there is no thing.
    """
    nouns = np.full((len(labels), len(middles)), len(NOUNS))
    colours = np.full_like(nouns, -100)
    for row in labels.transpose(1, 0, 2):
        low, high = row[:, None, 1:3], row[:, None, 3:5]
        off = np.abs(middles[None] - (low + high) / 2) / np.maximum(high - low, 1)
        real = row[:, None, 0] >= 0
        nouns[real & (off.max(-1) < 0.55) & (nouns == len(NOUNS))] = -100
        core = real & (off.max(-1) < 0.3)
        nouns = np.where(core, row[:, None, 0], nouns).astype(int)
        colours = np.where(core, np.where(row[:, None, 5] < 0, len(HUES), row[:, None, 5]), colours).astype(int)
    return nouns, colours
