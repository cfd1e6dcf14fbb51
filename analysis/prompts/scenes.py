"""Scenes of the emoji world that no training saw, as prompts and as pictures, in the place of COCO's captions.

Conventions: scenes are drawn as those of the training are, with a seed that no training has; each caption once. The
picture of a prompt is ``<prompt's id>.png``.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from analysis.prompts.files import PromptSet
from tracer.pictures import write_image
from tracer.prompts import Prompt
from tracer.scenes import Scene, captioned, render

SEED = 3_000_2403


def emoji_scenes(count: int = 3000, seed: int = SEED) -> PromptSet:
    """Return captions of scenes with all that they name; the file of each one's picture is in the metadata ("file").

    Args:
        count: how many, 1 to 10,000; a smaller set is the beginning of a larger one.
        seed: of the scenes.

    Raises:
        ValueError: count is out of its range.
    """
    found = scenes(count, seed)
    prompts = [
        Prompt(f"scene-{number:05}", text, tuple(thing.word for thing in scene.things), "emoji-scenes")
        for number, (text, scene) in enumerate(found.items())
    ]
    metadata = {prompt.text: {"file": f"{prompt.id}.png"} for prompt in prompts}
    return PromptSet(
        f"emoji-scenes-{count}", f"Scenes ({count:,})", tuple(prompts), {},
        f"scenes of the emoji world, drawn with seed {seed}, which no training has", (), {}, metadata,
    )  # fmt: skip


def draw_scenes(folder: Path, count: int = 3000, seed: int = SEED) -> None:
    """Draw the pictures of `emoji_scenes` that are not in the folder yet."""
    for number, scene in enumerate(scenes(count, seed).values()):
        path = folder / f"scene-{number:05}.png"
        if not path.is_file():
            write_image(Image.fromarray(render(scene)), path)


def scenes(count: int, seed: int) -> dict[str, Scene]:
    """Return so many scenes by their captions.

    Raises:
        ValueError: count is out of its range.
    """
    if not 1 <= count <= 10_000:
        raise ValueError(f"count must be from 1 to 10,000, got {count}")
    rng = np.random.default_rng(seed)
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene, text = captioned(rng, 0.0)
        found.setdefault(text, scene)
    return found
