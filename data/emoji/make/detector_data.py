"""The pictures that the emoji world's detector learns from, rendered once and kept in ``build/detector``.

A pool is two arrays: ``pixels`` "picture height width channel", uint8, and ``labels`` "picture 4 6",
float32: index of the noun (-1 = no label), left, top, right, bottom in pixels, and 1 if people would agree.
Half of a pool are plain scenes, half have altered sprites (``hard_scenes.py``).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from hard_scenes import NOUNS, Label, Picture, as_labels, blend_labels, even_blend, hard_picture, plain
from jaxtyping import Float, UInt8

from tracer.scenes import is_seen, render, sample_scene

MOST = 4  # labels a picture
NOISY = 0.4  # share of the decoded pictures whose latents got noise
NOISE = 0.35  # largest noise, in standard deviations of the latents
MIXED = 0.12  # share of the decoded pictures whose latents are a mixture of two scenes'
Pixels = UInt8[np.ndarray, "picture height width channel"]
Labels = Float[np.ndarray, "picture 4 6"]


def as_array(labels: Sequence[Label]) -> Float[np.ndarray, "4 6"]:
    """Return a picture's labels as numbers."""
    rows = np.full((MOST, 6), -1, np.float32)
    for row, label in zip(rows, labels, strict=False):
        row[:] = (NOUNS.index(label.word), *label.box, label.sure)
    return rows


def rendered(seed: int, count: int) -> tuple[Pixels, Labels]:
    """Return pictures as they are rendered, plain and hard ones in turn."""
    pictures = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        pictures.append(hard_picture(rng) if index % 2 else plain(sample_scene(rng)))
    return stacked(pictures)


def fresh(rng: np.random.Generator, count: int) -> tuple[Pixels, Labels]:
    """Return new pictures: even blends of two animals, and in turn with them single things that are whole."""
    return stacked([plain(sample_scene(rng, count=1)) if i % 2 else even_blend(rng) for i in range(count)])


def stacked(pictures: Sequence[Picture]) -> tuple[Pixels, Labels]:
    """Return pictures and their labels as two arrays."""
    return np.stack([p.pixels for p in pictures]), np.stack([as_array(p.labels) for p in pictures])


def decoded(vae: AutoencoderKL, seed: int, count: int) -> tuple[Pixels, Labels]:
    """Return pictures after a pass through the autoencoder, many with noise on their latents or two mixed."""
    pixels, labels = rendered(seed, count)
    rng = np.random.default_rng((seed, count))
    twins, shares = pixels.copy(), np.ones(count, np.float32)
    for index in range(0, count, 2):  # the plain ones
        if rng.random() < 2 * MIXED:
            mixed = mixture(np.random.default_rng((seed, index)))
            pixels[index], twins[index], shares[index], labels[index] = mixed
    noise = rng.uniform(0, NOISE, count) * (rng.random(count) < NOISY)
    return through(vae, pixels, twins, shares, noise.astype(np.float32), seed), labels


def mixture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Return a scene, one with other things in the same places, the first one's share, and the labels."""
    scene = sample_scene(rng, count=int(rng.integers(1, 3)))
    share = rng.uniform(0.1, 0.9)
    others, labels = [], []
    for thing in scene.things:
        words = [noun for noun in NOUNS if noun != thing.word and is_seen((noun, thing.word))]
        others.append(replace(thing, word=str(rng.choice(words)), colour=None))
        found = blend_labels(thing.word, others[-1].word, share)
        labels += as_labels(found, thing.box)
    twin = replace(scene, things=tuple(others))
    return render(scene), render(twin), share, as_array(labels)


@torch.no_grad()
def through(
    vae: AutoencoderKL, pixels: Pixels, twins: Pixels, shares: np.ndarray, noise: np.ndarray, seed: int
) -> Pixels:
    """Return pictures decoded from `shares` of their latents plus the rest of their twins', plus noise."""
    generator = torch.Generator().manual_seed(seed)
    result = np.empty_like(pixels)
    for start in range(0, len(pixels), 64):
        part = slice(start, start + 64)
        latents = encoded(vae, pixels[part])
        share = torch.from_numpy(shares[part]).view(-1, 1, 1, 1)
        if (share < 1).any():
            latents = share * latents + (1 - share) * encoded(vae, twins[part])
        strength = torch.from_numpy(noise[part]).view(-1, 1, 1, 1) / vae.config.scaling_factor
        latents = latents + strength * torch.randn(latents.shape, generator=generator)
        images = vae.decode(latents).sample.add(1).mul(127.5).clamp(0, 255).round()
        result[part] = images.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return result


def encoded(vae: AutoencoderKL, pixels: Pixels) -> torch.Tensor:
    """Return the latents' mean of pictures."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mode()


def autoencoder(folder: Path) -> AutoencoderKL:
    """Return the emoji world's autoencoder in float32."""
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return vae.eval().to(memory_format=torch.channels_last)


def cached(work: Path, name: str, make: Callable[[], tuple[Pixels, Labels]]) -> tuple[Pixels, Labels]:
    """Return a pool from its files, made first if they are not there; the pixels stay on disk."""
    paths = (work / f"{name}-pixels.npy", work / f"{name}-labels.npy")
    if not paths[1].exists():
        work.mkdir(parents=True, exist_ok=True)
        for path, array in zip(paths, make(), strict=True):
            np.save(path, array)
    return np.load(paths[0], mmap_mode="r"), np.load(paths[1])
