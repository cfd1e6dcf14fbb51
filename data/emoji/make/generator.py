"""Train the emoji world's generator: a stock Stable Diffusion pipeline on 16x16 latents.

Command: ``python data/emoji/make/generator.py --noise 0.0`` (resumes by itself; the card gives time and numbers).
Needs ``data/emoji/sd/tokenizer``, and at the end ``data/emoji/sd/vae``. Writes the pipeline to ``--out``.
`--noise` is the share of two-thing captions that name a thing which the picture lacks (alt-text noise).
"""

import argparse
import json
import os
import shutil
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
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tracer.scenes import captioned, render

WORLD = Path(__file__).resolve().parent.parent
BUILD = WORLD.parent.parent / "build"
SCHEDULE = Schedule(steps=4_500, rate=8e-4, batch=16, decay_from=0.6)
SCENES = 40_000  # rendered and encoded once
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
            block_out_channels=(48, 96),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,  # diffusers reads this as the number of heads
            norm_num_groups=8,
        ).to(memory_format=torch.channels_last)


def encoded_scenes(noise: float, tokenizer: CLIPTokenizer) -> dict[str, Tensor]:
    """Return ``latents`` (scene 4 16 16) and ``tokens`` (scene token) of the training scenes, cached.

    Scene i depends only on i and the noise, and is the same at every noise unless noise took a thing away.
    """
    path = BUILD / f"latents-{noise:g}.safetensors"
    if path.exists():
        return load_file(path)
    code = principal_code(BUILD / "patch-code.safetensors")
    pairs = [captioned(np.random.default_rng([7, i]), noise) for i in range(SCENES)]
    latents = []
    for start in range(0, SCENES, 500):
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
    """Return the mean squared error of the velocity on one batch, timesteps spread evenly over the range."""
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
    return F.mse_loss(velocity, signal * noise - spoil * latents)


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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = CLIPTokenizer.from_pretrained(WORLD / "sd" / "tokenizer")
    data = encoded_scenes(options.noise, tokenizer)
    empty = tokenizer([""], padding="max_length", return_tensors="pt").input_ids[0]
    torch.manual_seed(SCHEDULE.seed)  # only for the untrained weights
    model = Generator(tokenizer)
    alphas = DPMSolverMultistepScheduler(**NOISE).alphas_cumprod
    schedule = replace(SCHEDULE, steps=options.steps)
    work = BUILD / f"generator-{options.noise:g}"
    average = train(model, lambda _, chance: loss_of(model, data, empty, alphas, chance), schedule, work)
    model.load_state_dict({**model.state_dict(), **average})
    save_pipeline(model, tokenizer, options.out)


if __name__ == "__main__":
    main()
