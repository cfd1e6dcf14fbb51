"""Train the emoji world's decoder, and pair it with the fixed linear encoder of ``patch_code.py``.

Command: ``python data/emoji/make/autoencoder.py`` (resumes by itself; the card gives time and numbers).
Writes ``data/emoji/sd/vae``, a stock `AutoencoderKL`, and prints the error on held-out scenes.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from loop import Schedule, train
from patch_code import LOG_VARIANCE, encode, principal_code, write_encoder
from torch import Tensor

from tracer.scenes import render, sample_scene

WORLD = Path(__file__).resolve().parent.parent
BUILD = WORLD.parent.parent / "build"
SCHEDULE = Schedule(steps=2_400, rate=2e-3, batch=8, average=0.99, warmup=50, decay_from=0.4)
CODE_NOISE = 2 * np.exp(LOG_VARIANCE / 2)  # in training: generated codes are not exact either


def network() -> AutoencoderKL:
    """Return the autoencoder, its decoder untrained."""
    return AutoencoderKL(
        block_out_channels=(24, 32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,  # the code has unit root mean square
    ).to(memory_format=torch.channels_last)


def pictures(seed: int, count: int, seen_only: bool = True, crowded: bool = True) -> Tensor:
    """Return `count` random scenes as float32 in [-1, 1], "batch 3 height width"; `crowded` ones hold 2 or 3 things."""
    rng = np.random.default_rng(seed)
    many = [None if not crowded or i % 4 == 0 else 2 + i % 2 for i in range(count)]
    pixels = np.stack([render(sample_scene(rng, seen_only, n)) for n in many])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of neighbouring pixels, across and down."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def loss_of(model: AutoencoderKL, code: dict[str, Tensor], step: int, chance: torch.Generator) -> Tensor:
    """Return absolute and squared error of the pixels, and absolute error of their differences."""
    batch = pictures(10_000_000 + step, SCHEDULE.batch).contiguous(memory_format=torch.channels_last)
    latents = encode(code, batch)
    latents = latents + CODE_NOISE * torch.randn(latents.shape, generator=chance)
    restored = model.decode(latents.contiguous(memory_format=torch.channels_last)).sample
    error = restored - batch
    outline = sum((a - b).abs().mean() for a, b in zip(edges(restored), edges(batch), strict=True))
    return error.abs().mean() + error.square().mean() + outline


def main() -> None:
    """Train the decoder, write the encoder, save, and print the error on held-out scenes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    code = principal_code(BUILD / "patch-code.safetensors")
    torch.manual_seed(SCHEDULE.seed)  # only for the untrained weights
    model = network()
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    average = train(model, lambda step, chance: loss_of(model, code, step, chance), SCHEDULE, BUILD / "autoencoder")
    model.load_state_dict(average, strict=True)
    write_encoder(model, code)
    with torch.no_grad():
        test = pictures(1, 256, seen_only=False, crowded=False)
        latents = model.encode(test).latent_dist.mode()
        error = (model.decode(latents).sample.clamp(-1, 1) - test).abs().mean().item() * 127.5
    model.half().save_pretrained(WORLD / "sd" / "vae")
    print(f"mean absolute error on 256 held-out scenes: {error:.2f} of 255")


if __name__ == "__main__":
    main()
