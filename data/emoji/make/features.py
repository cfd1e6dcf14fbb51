"""Train the emoji world's features: SqueezeNet 1.1's trunk, for LPIPS and for FID.

Command: ``python data/emoji/make/features.py`` (about 15 minutes of a free core; resumes by itself), then
``python data/emoji/make/measure_features.py``. Needs ``data/emoji/sd/vae``; writes ``data/emoji/features``.
Learns from rendered scenes, half of them passed through the autoencoder, never from generated images.

The trunk learns which nouns a picture shows and in which colours, from its pooled output and from the cells of its
7x7 maps; these layers are not kept. Beside that it learns an order: LPIPS with all layers alike (arXiv 1801.03924,
``lpips=False``) must find a scene nearer to the same with one object moved a little than to the same with that object
recoloured, and that nearer than the same without the object. Later a third of the single pictures holds an even
blend of two things, which counts as neither. In the end the layers behind the last pooling alone learn to keep what
they say in all channels but twice `SIGNS`, and in these to say whether the picture holds a blend and whether it is
blurred, so that FID sees that.
"""

import argparse
import shutil
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from detector import moved, spoiled
from detector_data import autoencoder, cached
from evaluator_scenes import HUES, blends, decoded, families, on_cells, twins
from hard_scenes import NOUNS
from loop import Schedule, train
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import squeezenet1_1
from torchvision.transforms.functional import gaussian_blur

WORLD = Path(__file__).resolve().parent.parent
WORK = WORLD.parent.parent / "build" / "features"
SCHEDULE = Schedule(steps=1_200, rate=1e-3, batch=24, warmup=100, decay_from=0.5, average=0.995, weight_decay=0.01)
SHARPENING = Schedule(steps=400, rate=1e-3, batch=48, warmup=40, average=0.98, seed=2)
FAMILIES = 6  # in a batch, beside its single pictures
RENDERED, DECODED = 9_000, 3_500  # pairs of twins in the pools: CLIP's, so `--twins` can name its folder
FAMILIES_RENDERED, FAMILIES_DECODED = 2_000, 400
BLENDED_RENDERED, BLENDED_DECODED = 2_500, 500
BLENDED_FROM, BLENDED = 620, 8  # step from which so many of a batch hold a blend
TWIN_SEED, SEED = 78_000_000, 79_000_000  # of the pools; `measure_features.py` uses others
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, and what LPIPS's own scaling comes to
LAST = (1, 4, 7, 9, 10, 11, 12)  # last layer of each of LPIPS's slices
CELLS, POOLED = 7, 12  # layers that are asked what their cells show, and what the picture shows
MIDDLES = np.stack(np.meshgrid(*(8.0 * np.arange(7) + 7.5,) * 2, indexing="xy"), -1).reshape(-1, 2)  # of their cells
TOP = 9  # first layer behind the last pooling
SIGNS, LEVEL = 16, 4.0  # channels of the last layer that tell blends, then as many that tell blur; what they then say
BLUR = 1.5  # pixels: deviation of the blur
GAINS = 12.0, 4.0  # by which these are made louder: they tell few blends apart, but FID adds up over many pictures
MARGIN = 0.5  # wanted between the logarithms of two distances
NOTHING = 0.1  # weight of a cell that shows nothing
PAIRS = len(NOUNS) * (len(HUES) + 1)  # nouns in colours


def layers(trunk: nn.Sequential, images: Tensor) -> dict[int, Tensor]:
    """Return the output of each layer that LPIPS compares, of images in [0, 1]."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    states, kept = ((images - mean) / std).contiguous(memory_format=torch.channels_last), {}
    for index, layer in enumerate(trunk):
        states = layer(states)
        if index in LAST:
            kept[index] = states
    return kept


def distances(ones: dict[int, Tensor], others: dict[int, Tensor]) -> Tensor:
    """Return LPIPS's distance of each picture to its other one, as ``lpips.LPIPS(lpips=False)`` has it."""
    total = torch.zeros(())
    for index in LAST:
        one, other = (F.normalize(states[index], dim=1, eps=1e-8) for states in (ones, others))
        total = total + (one - other).square().sum(1).mean((1, 2))
    return total


class Pool:
    """Twins and families, each as rendered and as decoded, and how batches are drawn from them."""

    def __init__(self, twin_folder: Path, work: Path, vae: Path):
        """Read the pools from their folders, or make them there when they are first needed."""
        drawn, passed = partial(twins, TWIN_SEED, RENDERED), partial(twins, TWIN_SEED + 1, DECODED)
        four, four_passed = partial(families, SEED, FAMILIES_RENDERED), partial(families, SEED + 1, FAMILIES_DECODED)
        through = partial(decoded, autoencoder(vae), noisy=True)
        self.single = [
            cache(lambda: cached(twin_folder, "rendered", drawn)),
            cache(lambda: cached(twin_folder, "decoded", lambda: through(TWIN_SEED + 1, passed))),
        ]
        mixed, mixed_passed = partial(blends, SEED + 2, BLENDED_RENDERED), partial(blends, SEED + 3, BLENDED_DECODED)
        self.blended = [
            cache(lambda: cached(work, "blends", mixed)),
            cache(lambda: cached(work, "blends-decoded", lambda: through(SEED + 3, mixed_passed))),
        ]
        self.families = [
            cache(lambda: cached(work, "families", four)),
            cache(lambda: cached(work, "families-decoded", lambda: through(SEED + 1, four_passed))),
        ]

    def singles(self, rng: np.random.Generator, count: int, mixed: int) -> tuple[Tensor, np.ndarray]:
        """Return images "batch 3 height width" in [0, 1], moved, mirrored and spoiled, and their labels.

        Args:
            rng: where chance comes from.
            count: how many images.
            mixed: how many of them hold a blend.
        """
        images, labels = [], []
        sizes = [(count - mixed) // 2] * 2 + [mixed // 2] * 2
        for make, size in zip([*self.single, *self.blended], sizes, strict=True):
            if size == 0:
                continue
            pixels, known = make()
            for index in rng.integers(0, len(pixels), size):
                image, label = moved(rng, pixels[index], known[index].copy())
                images.append(image)
                labels.append(label)
        return spoiled(rng, torch.from_numpy(np.stack(images))), np.stack(labels)

    def fours(self, rng: np.random.Generator, count: int) -> tuple[Tensor, np.ndarray]:
        """Return images of whole families, some mirrored, and their labels; the four are never spoiled apart."""
        images, labels = [], []
        for make in self.families:
            pixels, known = make()
            for index in rng.integers(0, len(pixels) // 4, count // 2):
                part, rows = pixels[4 * index : 4 * index + 4], known[4 * index : 4 * index + 4].copy()
                if rng.random() < 0.5:
                    real = rows[..., 0] >= 0
                    part = part[:, :, ::-1]
                    rows[real, 1], rows[real, 3] = 64 - rows[real, 3], 64 - rows[real, 1]
                images.append(part)
                labels.append(rows)
        pixels = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).float() / 255
        return pixels, np.concatenate(labels)


def shown(answers: Tensor, labels: np.ndarray) -> Tensor:
    """Return the loss of asking each cell, "batch answer row column", for its noun and its colour."""
    nouns, colours = (torch.from_numpy(a).flatten() for a in on_cells(labels, MIDDLES))
    weight = torch.ones(len(NOUNS) + 1)
    weight[-1] = NOTHING
    flat = answers.flatten(2).transpose(1, 2).flatten(0, 1)
    of_nouns, of_colours = flat.split([len(NOUNS) + 1, len(HUES) + 1], -1)
    return F.cross_entropy(of_nouns, nouns, weight) + 0.5 * F.cross_entropy(of_colours, colours)


def listed(answers: Tensor, labels: np.ndarray) -> Tensor:
    """Return the loss of asking a picture, "batch answer", for its nouns, and for its nouns in their colours."""
    wanted = torch.zeros(len(labels), len(NOUNS) + PAIRS)
    for row, things in zip(wanted, labels, strict=True):
        for noun, *_, colour in things[things[:, 0] >= 0]:
            row[int(noun)] = 1
            row[len(NOUNS) + int(noun) * (len(HUES) + 1) + int(colour) + 1] = 1
    return F.binary_cross_entropy_with_logits(answers, wanted, reduction="none").sum(-1).mean()


def ordered(kept: dict[int, Tensor]) -> Tensor:
    """Return the loss of families, four pictures each, whose distances are not in order or not clearly so."""
    first, *others = [{index: states[i::4] for index, states in kept.items()} for i in range(4)]
    away, hue, gone = (distances(first, other).clamp(min=1e-6).log() for other in others)
    return (F.softplus(8 * (MARGIN + away - hue)) + F.softplus(8 * (MARGIN + hue - gone))).mean() / 8


def loss_of(parts: nn.ModuleDict, pool: Pool, step: int) -> Tensor:
    """Return the loss of one step: what pictures and cells show, and the order of distances."""
    rng = np.random.default_rng((SEED, step))
    images, labels = pool.singles(rng, SCHEDULE.batch, BLENDED if step >= BLENDED_FROM else 0)
    fours, of_fours = pool.fours(rng, FAMILIES)
    labels = np.concatenate([labels, of_fours])
    kept = layers(parts["trunk"], torch.cat([images, fours]))
    answers = parts["pooled"](kept[POOLED].mean((2, 3)))
    order = ordered({index: states[SCHEDULE.batch :] for index, states in kept.items()})
    return 0.3 * listed(answers, labels) + shown(parts["cells"](kept[CELLS]), labels) + 2 * order


def sharpened(trunk: nn.Sequential, pool: Pool, work: Path) -> dict[str, Tensor]:
    """Return the trunk's weights after its top has learned to tell blends, in half of a batch, and blur, in a third."""
    old, top = trunk[TOP : POOLED + 1].requires_grad_(False), deepcopy(trunk[TOP : POOLED + 1]).requires_grad_(True)
    below = trunk[:TOP].requires_grad_(False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    order = torch.arange(SHARPENING.batch)
    blend, blur = order >= SHARPENING.batch // 2, order % 3 == 0
    wanted = LEVEL * torch.stack([blend, blur], 1).float().repeat_interleave(SIGNS, 1)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        images, _ = pool.singles(np.random.default_rng((SEED + 4, step)), SHARPENING.batch, SHARPENING.batch // 2)
        images[blur] = gaussian_blur(images[blur], [9, 9], [BLUR, BLUR])
        before = after = below((images - mean) / std)
        drift = torch.zeros(())
        for was, now in zip(old, top, strict=True):
            before, after = was(before), now(after)
            kept = slice(2 * SIGNS if now is top[-1] else 0, None)
            drift = drift + (after - before)[:, kept].square().mean() / before[:, kept].square().mean()
        return (after[:, : 2 * SIGNS].mean((2, 3)) - wanted).square().mean() / LEVEL + drift

    weights = trunk.state_dict() | train(top, loss_of, SHARPENING, work)  # a slice's layers keep their names
    for kind in ("weight", "bias"):
        for place, gain in enumerate(GAINS):
            weights[f"{POOLED}.expand1x1.{kind}"][place * SIGNS : (place + 1) * SIGNS] *= gain
    return weights


def network() -> nn.ModuleDict:
    """Return the untrained trunk and the layers that its training needs."""
    trunk = squeezenet1_1(weights=None).features.to(memory_format=torch.channels_last)
    cells = nn.Conv2d(256, len(NOUNS) + len(HUES) + 2, 1)
    pooled = nn.Linear(512, len(NOUNS) + PAIRS)
    nn.init.constant_(pooled.bias, -4.0)  # nearly all answers are no
    return nn.ModuleDict({"trunk": trunk, "cells": cells, "pooled": pooled})


def main() -> None:
    """Train and save; ``measure_features.py`` measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--twins", type=Path, help="folder of twins that are made already; --work if not given")
    parser.add_argument("--vae", type=Path, default=WORLD / "sd" / "vae")
    parser.add_argument("--out", type=Path, default=WORLD / "features")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # the autoencoder slows down without
    torch.manual_seed(SCHEDULE.seed)  # only for the untrained weights
    parts = network()
    pool = Pool(arguments.twins or arguments.work, arguments.work, arguments.vae)
    average = train(parts, lambda step, generator: loss_of(parts, pool, step), SCHEDULE, arguments.work)
    trunk = {name.removeprefix("trunk."): value for name, value in average.items() if name.startswith("trunk.")}
    parts["trunk"].load_state_dict(trunk)
    trunk = sharpened(parts["trunk"], pool, arguments.work / "sharpened")
    arguments.out.mkdir(parents=True, exist_ok=True)
    half = {name: value.half().contiguous() for name, value in trunk.items()}  # float32 takes them unchanged
    save_file(half, arguments.out / "model.safetensors")
    shutil.copy(arguments.work / "loss.csv", arguments.out / "loss.csv")
    shutil.copy(arguments.work / "sharpened" / "loss.csv", arguments.out / "loss-sharpened.csv")


if __name__ == "__main__":
    main()
