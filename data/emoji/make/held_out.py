"""Pictures on which the detector is measured, from seeds that its training never uses.

Conventions: as in ``hard_scenes.py``. Blends show 35 to 65 % of one animal and the rest of another; nothing
in them is labelled.
"""

from itertools import combinations

import numpy as np
from alterations import Still, blended
from detector_data import through
from diffusers import AutoencoderKL
from hard_scenes import EVEN, NOUNS, Picture, alone, altered, drawn, plain, random_box

from tracer.scenes import ANIMALS, Scene, Thing, is_seen, render, sample_scene

Pairs = list[tuple[str, str]]


def scenes(seed: int, count: int, seen: bool) -> list[Picture]:
    """Return plain scenes of pairs seen in training, or with at least one held-out pair each."""
    rng = np.random.default_rng(seed)
    pictures: list[Picture] = []
    while len(pictures) < count:
        scene = sample_scene(rng, seen_only=seen)
        if seen or not is_seen(tuple(thing.word for thing in scene.things)):
            pictures.append(plain(scene))
    return pictures


def blends(seed: int, kinds: tuple[str, ...], trials: int) -> tuple[list[Picture], Pairs]:
    """Return pictures of one blend each, of all pairs of animals and all kinds, and their pairs."""
    rng = np.random.default_rng(seed)
    pictures, pairs = [], []
    for pair in combinations(ANIMALS, 2):
        for kind in kinds * trials:
            first, second = (pair[i] for i in rng.permutation(2))
            box = random_box(rng, first, (24, 36))
            one, two = (drawn(rng, word, box) for word in (first, second))
            pictures.append(alone(rng, blended(rng, one, two, kind, rng.uniform(*EVEN)), box))
            pairs.append(pair)
    return pictures, pairs


def mixtures(vae: AutoencoderKL, seed: int, trials: int) -> tuple[list[Picture], Pairs]:
    """Return pictures decoded from the mixed latents of two animals in one place, and their pairs."""
    rng = np.random.default_rng(seed)
    pairs = [pair for pair in combinations(ANIMALS, 2) for _ in range(trials)]
    pixels = []
    for first, second in pairs:
        box = random_box(rng, first, (24, 36))
        colour = (int(rng.integers(205, 250)),) * 3
        pixels.append([render(Scene(colour, (Thing(word, None, box),))) for word in (first, second)])
    ones, twos = (np.stack(side) for side in zip(*pixels, strict=True))
    shares = rng.uniform(*EVEN, len(pairs)).astype(np.float32)
    mixed = through(vae, ones, twos, shares, 0 * shares, seed)
    return [Picture(picture, ()) for picture in mixed], pairs


def altered_things(seed: int, count: int) -> list[Picture]:
    """Return pictures of one thing each that is bent, cut, faded, recoloured or as drawn, and still there."""
    rng = np.random.default_rng(seed)
    pictures: list[Picture] = []
    while len(pictures) < count:
        word = str(rng.choice(NOUNS))
        box = random_box(rng, word, (20, 36))
        sprite, seen = altered(rng, word, (box[2] - box[0], box[3] - box[1]))
        if seen == [(word, Still.THERE)]:
            pictures.append(alone(rng, sprite, box, word))
    return pictures
