"""Measure the emoji world's CLIP on held-out scenes, through open_clip's own loaders.

Command: ``python data/emoji/make/measure_clip.py`` (some minutes on one core). Writes ``protocol.json`` (hash of the
weights), ``card.json`` and ``contact-sheet.png`` into ``data/emoji/clip``.

Scenes come from their own seeds, half of them passed through the autoencoder. A picture is put right if its own
caption has the highest cosine of all that it is compared with: 64 captions of different content, its own among
them; all captions with one word different, a noun or a colour; all with one thing missing, or one more.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from detector_data import Pixels, autoencoder
from evaluator_scenes import HUES, Things, captioned_as, half_decoded, key_of, put
from hard_scenes import NOUNS
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from tracer.scenes import ANIMALS, Scene, Thing, caption, is_seen, render, sample_scene

WORLD = Path(__file__).resolve().parent.parent
TEST = 98_000_000  # seed
CHOICES = 64  # captions of which one is right
GROUPS = 16  # of so many pictures, of seen and of unseen pairs each
HARD = 320  # pictures of each that are compared with all captions near their own
ENSEMBLED = 2  # groups whose captions are averaged over 80 templates
TARGETS = {"right_of_64": 0.9}


@dataclass(frozen=True)
class Clip:
    """The model with its own preprocessing and tokenizer."""

    model: open_clip.CLIP
    preprocess: object
    tokenizer: object

    @torch.no_grad()
    def images(self, pixels: Pixels) -> Tensor:
        """Return the directions "picture channel" of pictures."""
        batches = [pixels[start : start + 64] for start in range(0, len(pixels), 64)]
        stacks = [torch.stack([self.preprocess(Image.fromarray(one)) for one in batch]) for batch in batches]
        return torch.cat([self.model.encode_image(stack, normalize=True) for stack in stacks])

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Return the directions "caption channel" of captions; each is worked out once."""
        unique = sorted(set(captions))
        batches = [self.tokenizer(unique[start : start + 256]) for start in range(0, len(unique), 256)]
        directions = torch.cat([self.model.encode_text(batch, normalize=True) for batch in batches])
        places = {text: place for place, text in enumerate(unique)}
        return directions[[places[text] for text in captions]]

    def ensemble(self, captions: Sequence[str]) -> Tensor:
        """Return the directions of captions, each the mean over the 80 templates, as Attend-and-Excite has it."""
        repaired = [
            template(text).replace("a a", "a").replace("the a", "a")
            for text in captions
            for template in OPENAI_IMAGENET_TEMPLATES
        ]
        directions = self.texts(repaired).view(len(captions), len(OPENAI_IMAGENET_TEMPLATES), -1)
        return F.normalize(directions.mean(1), dim=-1)


def load(folder: Path) -> Clip:
    """Return the model as anyone would load it."""
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, require_pretrained=True)
    return Clip(model.eval(), preprocess, open_clip.get_tokenizer(name))


def held_out(seed: int, groups: int, seen: bool) -> list[Scene]:
    """Return scenes in groups of `CHOICES`, no two of a group with the same content.

    Those of unseen pairs have at least one held-out pair each.
    """
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    for _ in range(groups):
        group: dict[object, Scene] = {}
        while len(group) < CHOICES:
            scene = sample_scene(rng, seen_only=seen)
            if seen or not is_seen(tuple(thing.word for thing in scene.things)):
                group.setdefault(key_of(scene.things), scene)
        scenes += group.values()
    return scenes


def of_groups(images: Tensor, texts: Tensor) -> Tensor:
    """Return whether each picture's own caption is the nearest of its group's."""
    pictures, captions = (part.view(-1, CHOICES, part.shape[-1]) for part in (images, texts))
    return ((pictures @ captions.mT).argmax(-1) == torch.arange(CHOICES)).flatten()


def near(things: Things) -> dict[str, list[Things]]:
    """Return everything that differs from these things in one noun, one colour, or one thing more or less."""
    found: dict[str, list[Things]] = {"noun": [], "colour": [], "missing": [], "extra": [], "exchanged": []}
    words = [thing.word for thing in things]
    for i, thing in enumerate(things):
        for word in NOUNS:
            if word not in words:
                colour = None if word in ANIMALS else thing.colour
                found["noun"].append(put(things, i, replace(thing, word=word, colour=colour)))
        if thing.colour is not None:
            hues = [hue for hue in HUES if hue != thing.colour]
            found["colour"] += [put(things, i, replace(thing, colour=hue)) for hue in hues]
        if len(things) > 1:
            found["missing"].append(things[:i] + things[i + 1 :])
        for j, other in enumerate(things[:i]):
            if thing.colour != other.colour and not {thing.word, other.word} & set(ANIMALS):
                other_way = put(things, i, replace(thing, colour=other.colour))
                found["exchanged"].append(put(other_way, j, replace(other, colour=thing.colour)))
    if len(things) < 3:
        found["extra"] = [(*things, Thing(word, None, (0, 0, 1, 1))) for word in NOUNS if word not in words]
    return found


def of_near(clip: Clip, scenes: Sequence[Scene], images: Tensor) -> dict[str, float]:
    """Return the shares of pictures whose own caption beats all others near it, by what differs."""
    right: dict[str, list[bool]] = {}
    for scene, image in zip(scenes, images, strict=True):
        kinds = {kind: [caption(one) for one in others] for kind, others in near(scene.things).items() if others}
        cosines = clip.texts([caption(scene.things), *(text for texts in kinds.values() for text in texts)]) @ image
        parts = dict(zip(kinds, cosines[1:].split([len(texts) for texts in kinds.values()]), strict=True))
        for kind, part in parts.items():
            right.setdefault(kind, []).append(bool(cosines[0] > part.max()))
        words = torch.cat([parts[kind] for kind in ("noun", "colour") if kind in parts])
        right.setdefault("one_word", []).append(bool(cosines[0] > words.max()))
    return {f"beats_all_{kind}": share(flags) for kind, flags in sorted(right.items())}


def of_omissions(clip: Clip, scenes: Sequence[Scene], vae: Path, seed: int) -> dict[str, float]:
    """Return how often the whole picture of two or three things is nearer to its caption than one without the last."""
    several = [scene for scene in scenes if len(scene.things) > 1]
    pairs = [one for scene in several for one in (scene, replace(scene, things=scene.things[:-1]))]
    pixels = half_decoded(autoencoder(vae), seed, np.stack([render(one) for one in pairs]), group=2)
    cosines = (
        clip.images(pixels).view(len(several), 2, -1) @ clip.texts([caption(s.things) for s in several])[..., None]
    )
    whole, lacking = cosines.squeeze(-1).unbind(1)
    return {
        "whole_picture_nearer_than_one_that_lacks_a_thing": share(whole > lacking),
        "mean_cosine_whole": round(whole.mean().item(), 4),
        "mean_cosine_lacking": round(lacking.mean().item(), 4),
    }


def share(flags: Sequence[bool] | Tensor) -> float:
    """Return the share of true ones, to four places."""
    return round(float(np.mean(np.asarray(flags))), 4)


def measured(clip: Clip, vae: Path, groups: int = GROUPS, hard: int = HARD) -> tuple[dict[str, object], Image.Image]:
    """Return the card's numbers, all from the test seeds, and the contact sheet."""
    card: dict[str, object] = {}
    sheets = []
    for name, seen, seed in (("seen_pairs", True, TEST), ("unseen_pairs", False, TEST + 1)):
        scenes = held_out(seed, groups, seen)
        rng = np.random.default_rng(seed + 10)
        texts = [captioned_as(rng, scene.things) for scene in scenes]
        pixels = half_decoded(autoencoder(vae), seed, np.stack([render(scene) for scene in scenes]))
        images, directions = clip.images(pixels), clip.texts(texts)
        some = slice(0, ENSEMBLED * CHOICES)
        card[name] = {
            "pictures": len(scenes),
            "right_of_64": share(of_groups(images, directions)),
            "right_picture_of_64": share(of_groups(directions, images)),
            "right_of_64_ensemble": share(of_groups(images[some], clip.ensemble(texts[some]))),
            **of_near(clip, scenes[:hard], images[:hard]),
            **of_omissions(clip, scenes[:hard], vae, seed + 20),
        }
        sheets.append(sheet(pixels[:CHOICES], texts[:CHOICES], images[:CHOICES] @ directions[:CHOICES].T))
    both = Image.new("RGB", (max(one.width for one in sheets), sum(one.height for one in sheets)), "white")
    both.paste(sheets[0], (0, 0))
    both.paste(sheets[1], (0, sheets[0].height))
    return card, both


def sheet(pixels: Pixels, texts: Sequence[str], cosines: Tensor, columns: int = 4) -> Image.Image:
    """Return pictures with the three captions of the highest cosine, the right one in green."""
    wide, high, count = 330, 74, 16
    canvas = Image.new("RGB", (columns * wide, count // columns * high), "white")
    draw = ImageDraw.Draw(canvas)
    for index in range(count):
        x, y = index % columns * wide, index // columns * high
        canvas.paste(Image.fromarray(pixels[index]), (x + 4, y + 4))
        for line, place in enumerate(cosines[index].topk(3).indices.tolist()):
            colour = "green" if place == index else "black"
            draw.text((x + 74, y + 8 + 18 * line), f"{cosines[index, place]:.2f} {texts[place]}", colour)
    return canvas


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=WORLD / "clip")
    parser.add_argument("--vae", type=Path, default=WORLD / "sd" / "vae")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)  # the autoencoder slows down without
    weights = hashlib.sha256((arguments.folder / "open_clip_model.safetensors").read_bytes()).hexdigest()
    clip = load(arguments.folder)
    numbers, contact = measured(clip, arguments.vae)
    (arguments.folder / "protocol.json").write_text(json.dumps({"weights": weights}, indent=1) + "\n")
    card = {
        "weights": weights,
        "parameters": sum(p.numel() for p in clip.model.parameters()),
        "targets": TARGETS,
        **numbers,
    }
    (arguments.folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    contact.save(arguments.folder / "contact-sheet.png", optimize=True)
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
