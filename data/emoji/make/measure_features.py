"""Measure the emoji world's features on held-out scenes: as a trunk for LPIPS, and for FID.

Command: ``python data/emoji/make/measure_features.py`` (some minutes on one core). Writes ``protocol.json`` (hash of
the weights), ``card.json`` and ``contact-sheet.png`` into ``data/emoji/features``.

Scenes come from their own seeds, half of them passed through the autoencoder. LPIPS: families (a scene, one coloured
object moved by 1 to 3 pixels along either side, recoloured, removed); a family is in order if the three distances to
the scene rise in this order. FID: the pooled output of the trunk for pictures in [0, 1] under ImageNet's mean and
deviation, at their own size; one half of the scenes against the other, and against the other half corrupted: one
object removed; one object replaced by an even blend with another, of kinds that training shows and of others; the
whole picture blurred.
"""

import argparse
import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lpips
import numpy as np
import torch
from alterations import BLENDS, UNTRAINED_BLENDS
from detector_data import Pixels, autoencoder
from evaluator_scenes import blend_in, families, half_decoded
from features import BLUR, MEAN, POOLED, STD
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from tracer.scenes import Scene, render, sample_scene

WORLD = Path(__file__).resolve().parent.parent
TEST = 95_000_000  # seed; the gains in ``features.py`` were set after looking at others
FAMILIES = 500  # of seen and of unseen pairs each
HALF = 2_000  # scenes on each side of a FID
TARGETS = {"in_order": 0.95, "fid_between_halves_over_corrupted": 0.05}


def load_trunk(folder: Path) -> nn.Sequential:
    """Return torchvision's layers with the weights of the folder, which must name all of them and no others."""
    trunk = squeezenet1_1(weights=None).features
    trunk.load_state_dict(load_file(folder / "model.safetensors"))
    return trunk.eval()


def load_lpips(trunk: nn.Sequential) -> lpips.LPIPS:
    """Return the metric with its slices filled from the trunk; all layers count alike."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it asks torchvision for no weights in an old way
        metric = lpips.LPIPS(net="squeeze", lpips=False, pnet_rand=True, verbose=False)
    for index in range(1, metric.net.N_slices + 1):
        for name, layer in getattr(metric.net, f"slice{index}").named_children():
            layer.load_state_dict(trunk[int(name)].state_dict())
    return metric.eval()


def as_images(pixels: Pixels) -> Tensor:
    """Return pictures as "picture channel height width" in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def distances(metric: lpips.LPIPS, pixels: Pixels) -> np.ndarray:
    """Return the distances "family 3" of each family's first picture to its others."""
    images = as_images(pixels).unflatten(0, (-1, 4))
    rows = []
    for part in images.split(64):
        rows.append(torch.stack([metric(part[:, 0], part[:, i], normalize=True).flatten() for i in (1, 2, 3)], 1))
    return torch.cat(rows).numpy()


@torch.no_grad()
def pooled(trunk: nn.Sequential, pixels: Pixels) -> np.ndarray:
    """Return the features "picture 512" of pictures."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    parts = as_images(pixels).split(64)
    return torch.cat([trunk[: POOLED + 1]((part - mean) / std).mean((2, 3)) for part in parts]).double().numpy()


def fid(ones: np.ndarray, others: np.ndarray) -> float:
    """Return the Frechet distance of two sets of features, by the trace formula of torch-fidelity."""
    means, covariances = zip(*((side.mean(0), np.cov(side, rowvar=False)) for side in (ones, others)), strict=True)
    roots = np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)
    trace = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.sqrt(roots).real.sum()
    return float(np.square(means[0] - means[1]).sum() + trace)


def without_one(rng: np.random.Generator, scene: Scene) -> Pixels:
    """Return the picture of a scene that lacks one of its things."""
    drop = int(rng.integers(len(scene.things)))
    return render(replace(scene, things=scene.things[:drop] + scene.things[drop + 1 :]))


def with_a_blend(rng: np.random.Generator, scene: Scene) -> Pixels:
    """Return the picture of a scene in which one thing is an even blend of it and another noun, of trained kinds."""
    return blend_in(rng, scene, BLENDS, seen_only=False)[0]


def with_a_new_blend(rng: np.random.Generator, scene: Scene) -> Pixels:
    """Return the same with a blend of a kind that training never shows."""
    return blend_in(rng, scene, UNTRAINED_BLENDS, seen_only=False)[0]


def blurred(rng: np.random.Generator, scene: Scene) -> Pixels:
    """Return the blurred picture of a scene."""
    return np.asarray(Image.fromarray(render(scene)).filter(ImageFilter.GaussianBlur(BLUR)))


CORRUPTIONS = {"removed": without_one, "blended": with_a_blend, "blurred": blurred, "newly_blended": with_a_new_blend}


def of_sets(trunk: nn.Sequential, vae: Path | None, half: int, seen: bool, seed: int) -> dict[str, float | int]:
    """Return the FID of one half of scenes with the other, and with the other corrupted in each way."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, seen_only=seen) for _ in range(2 * half)]
    sides = [np.stack([render(scene) for scene in scenes[part]]) for part in (slice(half), slice(half, None))]
    sides += [np.stack([change(rng, scene) for scene in scenes[half:]]) for change in CORRUPTIONS.values()]
    if vae is not None:
        sides = [half_decoded(autoencoder(vae), seed + i, side) for i, side in enumerate(sides)]
    first, second, *others = (pooled(trunk, side) for side in sides)
    corrupted = dict(zip(CORRUPTIONS, others, strict=True))
    thirds = [corrupted[name][start::3] for start, name in enumerate(("removed", "blended", "blurred"))]
    corrupted["one_of_three"] = np.concatenate(thirds)  # each scene corrupted in one of these ways
    same = fid(first, second)
    values = {name: fid(first, side) for name, side in corrupted.items()}
    ratios = {f"share_of_{name}": round(same / value, 4) for name, value in values.items()}
    rounded = {f"fid_{name}": round(value, 4) for name, value in {"halves": same, **values}.items()}
    return {"pictures_on_each_side": half, **rounded, **ratios}


def of_families(metric: lpips.LPIPS, pixels: Pixels) -> dict[str, float | int]:
    """Return how many families are in order, and the mean distances."""
    away, hue, gone = distances(metric, pixels).T
    return {
        "families": len(away),
        "in_order": share((away < hue) & (hue < gone)),
        "moved_nearer_than_recoloured": share(away < hue),
        "recoloured_nearer_than_removed": share(hue < gone),
        "mean_moved": round(float(away.mean()), 4),
        "mean_recoloured": round(float(hue.mean()), 4),
        "mean_removed": round(float(gone.mean()), 4),
    }


def share(flags: Sequence[bool] | np.ndarray) -> float:
    """Return the share of true ones, to four places."""
    return round(float(np.mean(flags)), 4)


def sheet(pixels: Pixels, apart: np.ndarray, columns: int = 3) -> Image.Image:
    """Return families as rows of four pictures, the distance to the first under each other one."""
    wide, high, names = 4 * 70 + 16, 84, ("moved", "recol.", "removed")
    canvas = Image.new("RGB", (columns * wide, -(-len(apart) // columns) * high), "white")
    draw = ImageDraw.Draw(canvas)
    for index, row in enumerate(apart):
        x, y = index % columns * wide, index // columns * high
        for place in range(4):
            canvas.paste(Image.fromarray(pixels[4 * index + place]), (x + 4 + 70 * place, y + 2))
            if place:
                colour = "black" if (np.diff(row) > 0).all() else "red"
                draw.text((x + 4 + 70 * place, y + 68), f"{names[place - 1]} {row[place - 1]:.2f}", colour)
    return canvas


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=WORLD / "features")
    parser.add_argument("--vae", type=Path, default=WORLD / "sd" / "vae")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)  # the autoencoder slows down without
    weights = hashlib.sha256((arguments.folder / "model.safetensors").read_bytes()).hexdigest()
    trunk = load_trunk(arguments.folder)
    metric = load_lpips(trunk)
    parameters = sum(p.numel() for p in trunk.parameters())
    card: dict[str, object] = {"weights": weights, "parameters": parameters, "targets": TARGETS}
    for name, seen, seed in (("seen_pairs", True, TEST), ("unseen_pairs", False, TEST + 1)):
        pixels = half_decoded(autoencoder(arguments.vae), seed, families(seed, FAMILIES, seen)[0], group=4)
        card[f"lpips_{name}"] = of_families(metric, pixels)
        if seen:
            sheet(pixels[:96], distances(metric, pixels[:96])).save(
                arguments.folder / "contact-sheet.png", optimize=True
            )
    card["fid"] = of_sets(trunk, arguments.vae, HALF, True, TEST + 2)
    card["fid_as_rendered"] = of_sets(trunk, None, HALF, True, TEST + 3)
    (arguments.folder / "protocol.json").write_text(json.dumps({"weights": weights}, indent=1) + "\n")
    (arguments.folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
