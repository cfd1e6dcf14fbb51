"""Train the emoji world's generator: a stock Stable Diffusion pipeline on 16x16 latents.

Command: ``python data/emoji/make/generator.py --noise 0.0`` (resumes by itself; the card gives time and numbers).
Needs ``data/emoji/sd/tokenizer``, and at the end ``data/emoji/sd/vae``. Writes the pipeline to ``--out``.
`--noise` is the share of two-thing captions that name a thing which the picture lacks (alt-text noise).

The first steps see scenes of one and of three things only, in whose captions there never is such noise. So they are
the same whatever the noise is: they are trained once, in ``build/generator-trunk``, and every noise goes on from there.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from loop import Schedule, train
from patch_code import encode, principal_code
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tracer.scenes import Scene, caption, captioned, render, sample_scene

WORLD = Path(__file__).resolve().parent.parent
BUILD = WORLD.parent.parent / "build"
SCHEDULE = Schedule(steps=8_200, rate=1e-3, batch=16, decay_from=0.66)
TRUNK = 5_000  # steps that do not depend on the noise
SCENES = 40_000  # rendered and encoded once
TRUNK_SCENES = 20_000  # likewise; one and three things in turn
CLIP, FLOOR = 5.0, 0.15  # of the loss's weight
UNCONDITIONAL = 0.1  # share of captions left empty, for guidance
WIDTH = 128  # of the text encoder
NOISE = {  # Stable Diffusion's forward process (2.1's prediction type)
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}


class Generator(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                projection_dim=WIDTH,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(40, 112),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=WIDTH,
            attention_head_dim=(2, 4),  # diffusers reads this as the numbers of heads
            norm_num_groups=8,
        ).to(memory_format=torch.channels_last)


def encoded_scenes(noise: float, tokenizer: CLIPTokenizer) -> dict[str, Tensor]:
    """Return ``latents`` (scene 4 16 16) and ``tokens`` (scene token) of the training scenes, cached.

    Scene i depends only on i and the noise, and is the same at every noise unless noise took a thing away.
    """
    return _encoded(
        BUILD / f"latents-{noise:g}.safetensors",
        lambda: [captioned(np.random.default_rng([7, i]), noise) for i in range(SCENES)],
        tokenizer,
    )


def trunk_scenes(tokenizer: CLIPTokenizer) -> dict[str, Tensor]:
    """Return the same of the scenes that the trunk is trained on: one and three things in turn."""

    def scenes() -> list[tuple[Scene, str]]:
        each = [sample_scene(np.random.default_rng([8, i]), count=1 + i % 2 * 2) for i in range(TRUNK_SCENES)]
        return [(scene, caption(scene.things)) for scene in each]

    return _encoded(BUILD / "latents-trunk.safetensors", scenes, tokenizer)


def _encoded(
    path: Path, captioned_scenes: Callable[[], list[tuple[Scene, str]]], tokenizer: CLIPTokenizer
) -> dict[str, Tensor]:
    if path.exists():
        return load_file(path)
    code = principal_code(BUILD / "patch-code.safetensors")
    pairs = captioned_scenes()
    latents = []
    for start in range(0, len(pairs), 500):
        pixels = np.stack([render(scene) for scene, _ in pairs[start : start + 500]])
        latents.append(encode(code, torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)))
    tokens = tokenizer([text for _, text in pairs], padding="max_length", return_tensors="pt").input_ids
    data = {"latents": torch.cat(latents).contiguous(), "tokens": tokens}
    save_file(data, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)
    return data


def loss_of(
    model: Generator, data: dict[str, Tensor], empty: Tensor, alphas: Tensor, chance: torch.Generator
) -> Tensor:
    """Return the weighted squared error of the velocity on one batch, timesteps spread evenly over the range.

    The weight is min-SNR's (arXiv 2303.09556, for the velocity), kept above `FLOOR`: with equal weights the
    noisy steps, whose error no training can remove, drown what the others have to say of shapes.
    """
    count = SCHEDULE.batch
    rows = torch.randint(len(data["tokens"]), (count,), generator=chance)
    tokens = data["tokens"][rows].clone()
    tokens[torch.rand(count, generator=chance) < UNCONDITIONAL] = empty
    latents = data["latents"][rows]
    noise = torch.randn(latents.shape, generator=chance)
    spread = (torch.arange(count) + torch.rand(count, generator=chance)) / count
    timesteps = (spread * len(alphas)).long()
    signal = alphas[timesteps].sqrt().view(-1, 1, 1, 1)
    spoil = (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
    noisy = (signal * latents + spoil * noise).contiguous(memory_format=torch.channels_last)
    context = model.text_encoder(tokens).last_hidden_state
    velocity = model.unet(noisy, timesteps, encoder_hidden_states=context).sample
    ratio = (signal / spoil).square()
    weight = (ratio.clamp(max=CLIP) / (ratio + 1)).clamp(min=FLOOR)
    return (weight * (velocity - (signal * noise - spoil * latents)).square()).mean()


def save_pipeline(model: Generator, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write the whole pipeline in half precision, loadable by stock diffusers with no custom code."""
    vae = AutoencoderKL.from_pretrained(WORLD / "sd" / "vae", dtype=torch.float16)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder.half().eval(),
        tokenizer=tokenizer,
        unet=model.unet.half().eval(),
        scheduler=DPMSolverMultistepScheduler(**NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    partial = out.with_name(out.name + ".partial")
    pipe.save_pretrained(partial)
    # Transformers 5 would keep half precision, and the stock call would then fail on mixed types.
    _amend(partial / "text_encoder" / "config.json", dtype="float32")
    _amend(partial / "vae" / "config.json", _name_or_path=None)
    shutil.rmtree(partial / "tokenizer")  # saving writes the padding of the last call into it
    shutil.copytree(WORLD / "sd" / "tokenizer", partial / "tokenizer")
    shutil.copytree(partial, out, dirs_exist_ok=True)
    shutil.rmtree(partial)


def _amend(path: Path, **changes: str | None) -> None:
    """Change entries of a JSON file; None removes one."""
    entries = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}, indent=2) + "\n")


def main() -> None:
    """Train on captions of the given noise and save the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=SCHEDULE.steps)
    parser.add_argument("--out", type=Path, default=WORLD / "sd")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--trunk-only", action="store_true", help="stop before the first step that depends on the noise"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = CLIPTokenizer.from_pretrained(WORLD / "sd" / "tokenizer")
    early, data = trunk_scenes(tokenizer), encoded_scenes(options.noise, tokenizer)
    empty = tokenizer([""], padding="max_length", return_tensors="pt").input_ids[0]
    torch.manual_seed(SCHEDULE.seed)  # only for the untrained weights
    model = Generator(tokenizer)
    alphas = DPMSolverMultistepScheduler(**NOISE).alphas_cumprod
    schedule = replace(SCHEDULE, steps=options.steps)
    work = BUILD / f"generator-{options.noise:g}"
    trunk = BUILD / "generator-trunk"
    train(model, lambda _, chance: loss_of(model, early, empty, alphas, chance), schedule, trunk, until=TRUNK)
    if options.trunk_only:
        return
    if not (work / "checkpoint.safetensors").exists():
        shutil.copytree(trunk, work, dirs_exist_ok=True)
    average = train(model, lambda _, chance: loss_of(model, data, empty, alphas, chance), schedule, work)
    model.load_state_dict({**model.state_dict(), **average})
    save_pipeline(model, tokenizer, options.out)


if __name__ == "__main__":
    main()
